"""What is known of a flight when it is due to depart: the last thirty days of its carrier and of
its route, the weather at its airport, and what the timetable says.

Rows lie in Parquet files beside each other, made by `pipelines.flights`. A row counts from its
`event_timestamp` on, and as long as its view's `ttl`. Training joins by time; serving reads the
newest row from Redis. The tag `moment` of a feature service names the column whose time counts.
"""

from datetime import timedelta
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, String, UnixTimestamp

EVENT = "event_timestamp"
MOMENT = {"moment": "scheduled_departure"}
READINGS = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")


def _entity(name: str, what: str) -> Entity:
    return Entity(name=name, join_keys=[name], value_type=ValueType.STRING, description=what)


carrier = _entity("carrier", "IATA code, such as AA")
route = _entity("route", "from and to, such as JFK-LAX")
origin = _entity("origin", "FAA code, such as JFK")


def _rates(entity: Entity, what: str) -> FeatureView:
    name = entity.name
    return FeatureView(
        name=f"{name}_rates",
        entities=[entity],
        schema=[
            Field(name=name, dtype=String),
            Field(name=f"{name}_flights_30d", dtype=Float64, description="flights in the window"),
            Field(name=f"{name}_late_30d", dtype=Float64, description="share over 15 min late"),
            Field(name=f"{name}_delay_30d", dtype=Float64, description="mean delay, minutes"),
            Field(name=f"{name}_cancelled_30d", dtype=Float64, description="share cancelled"),
        ],
        source=FileSource(
            name=f"{name}_rates_file", path=f"{name}_rates.parquet", timestamp_field=EVENT
        ),
        ttl=timedelta(days=2),
        online=True,
        description=f"{what} over the trailing thirty days, of flights whose end was known by then",
    )


carrier_rates = _rates(carrier, "A carrier's flights")
route_rates = _rates(route, "A route's flights")

weather = FeatureView(
    name="weather",
    entities=[origin],
    schema=[Field(name="origin", dtype=String)]
    + [Field(name=name, dtype=Float64) for name in READINGS],
    source=FileSource(name="weather_file", path="weather.parquet", timestamp_field=EVENT),
    ttl=timedelta(hours=6),
    online=True,
    description="The hourly reading at the airport",
)

timetable = RequestSource(
    name="timetable",
    schema=[
        Field(name="scheduled_departure", dtype=UnixTimestamp),
        Field(name="distance", dtype=Float64, description="miles"),
    ],
)


@on_demand_feature_view(
    sources=[timetable],
    schema=[
        # Without descriptions: Feast compares these with fields that it infers, which have none.
        Field(name="hour", dtype=Float64),
        Field(name="weekday", dtype=Float64),
        Field(name="miles", dtype=Float64),
    ],
    mode="python",
)
def departure(inputs: dict[str, Any]) -> dict[str, Any]:
    """Hour and weekday in New York, where all of these flights depart, and the distance."""
    from zoneinfo import ZoneInfo

    zone = ZoneInfo("America/New_York")
    local = [moment.astimezone(zone) for moment in inputs["scheduled_departure"]]
    return {
        "hour": [one.hour + one.minute / 60 for one in local],
        "weekday": [float(one.weekday()) for one in local],
        "miles": [float(one) for one in inputs["distance"]],
    }


arrival_delay = FeatureService(
    name="arrival_delay",
    features=[carrier_rates, route_rates, weather, departure],
    tags=MOMENT,
    description="Whether a flight will arrive more than fifteen minutes late",
)
cancellation = FeatureService(
    name="cancellation",
    features=[carrier_rates, route_rates, weather, departure],
    tags=MOMENT,
    description="Whether a flight will be cancelled; shares the views of arrival_delay",
)
