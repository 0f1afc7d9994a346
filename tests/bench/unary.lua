-- wrk's script: one POST body for every request, and the figures as one line of JSON at the end.
-- Arguments after "--": the body, then header lines "name: value".
function init(arguments)
  wrk.method = "POST"
  wrk.body = arguments[1]
  wrk.headers["content-type"] = "application/json"
  for index = 2, #arguments do
    local name, value = arguments[index]:match("^([^:]+): (.*)$")
    wrk.headers[name] = value
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\nFIGURES {"p50_us": %d, "p99_us": %d, "requests": %d, "failed": %d, "seconds": %.6f}\n',
    latency:percentile(50), latency:percentile(99), summary.requests, failed,
    summary.duration / 1e6))
end
