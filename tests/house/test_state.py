"""One reader of the environment, no global state, no clients made at import."""

import ast

from tests.house.source import Module, modules

READER = "gateway/settings.py"
READS = {"environ", "environb", "getenv", "getenvb"}
# What nobody makes at import: it connects, opens, runs, locks, caches or collects.
LIVE = {
    "ClientSession", "Console", "Database", "DeltaTable", "Event", "FastAPI", "FeatureStore",
    "Live", "Lock", "MlflowClient", "OrderedDict", "Popen", "ProcessPoolExecutor", "Queue", "RLock",
    "Redis", "Semaphore", "ServerProxy", "Session", "SimpleQueue", "Thread", "ThreadPoolExecutor",
    "TTLCache", "connect", "count", "create_engine", "defaultdict", "deque", "from_url",
    "load_configuration", "load_settings", "open", "open_database", "sessionmaker", "socket",
}  # fmt: skip


def test_one_module_reads_the_environment():
    readers = {
        f"{module.path}:{node.lineno}"
        for module in modules()
        if module.path != READER
        for node in ast.walk(module.tree)
        if (
            isinstance(node, ast.Attribute)
            and node.attr in READS
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        )
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in READS for alias in node.names)
        )
    }
    assert not readers


def test_no_global_statement():
    found = [
        f"{module.path}:{node.lineno}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global)
    ]
    assert not found


def test_nothing_live_is_made_at_import():
    wrong = [
        f"{module.path}:{call.lineno} {name}()"
        for module in modules()
        for call, name in _module_level_calls(module)
        if name in LIVE
    ]
    assert not wrong


def test_module_level_containers_are_not_changed():
    wrong = []
    for module in modules():
        names = _module_level_containers(module)
        for function in ast.walk(module.tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                wrong += [f"{module.path}:{line}" for line in _changes(function, names)]
    assert not wrong


def _module_level_calls(module: Module) -> list[tuple[ast.Call, str]]:
    calls = []
    for statement in module.tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            for node in ast.walk(statement.value):
                if isinstance(node, ast.Call):
                    target = node.func
                    name = target.attr if isinstance(target, ast.Attribute) else ""
                    calls.append((node, target.id if isinstance(target, ast.Name) else name))
    return calls


def _module_level_containers(module: Module) -> set[str]:
    kinds = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    names = set()
    for statement in module.tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, kinds):
            names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return names


def _changes(function: ast.AST, names: set[str]) -> list[int]:
    changing = {"append", "add", "update", "pop", "clear", "extend", "insert", "setdefault"}
    lines: list[int] = []
    for node in ast.walk(function):
        target: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target = node.func.value if node.func.attr in changing else None
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node.value
        if isinstance(target, ast.Name) and target.id in names:
            lines.append(getattr(node, "lineno", 0))
    return lines
