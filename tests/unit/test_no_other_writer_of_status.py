"""Only ``outbox/storage/transitions.py`` writes ``status`` of outbox rows; proved by reading the source.

In ``outbox/`` nothing else may write anything called ``status``. In the project's apps, which have
records with a status of their own, this goes for every module that knows an outbox table: by a name that ends in
``OutboxMessage``, by the table's name in a text, or by the library's functions that lead to it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEARCHED = ("outbox", "agent_events", "smartflow")
THE_WRITER = Path("outbox/storage/transitions.py")

WRITING_CALLS = {
    "update",
    "aupdate",
    "create",
    "acreate",
    "get_or_create",
    "aget_or_create",
    "update_or_create",
    "aupdate_or_create",
    "bulk_create",
    "bulk_update",
    "save",
    "asave",
}
LEADS_TO_ROWS = re.compile(r"\w*OutboxMessage|outbox_table|service_models|repository_of")
NAMES_A_TABLE = re.compile(r"outbox_messages")

_STATUS = r"[\"`]?\bstatus\b[\"`]?"
SQL_WRITES = (
    re.compile(rf"\bUPDATE\b.*?\bSET\b(?:(?!\bWHERE\b).)*?{_STATUS}\s*=", re.IGNORECASE | re.DOTALL),
    re.compile(rf"\b(?:INSERT|REPLACE)\b[^()]*\bINTO\b[^()]*\([^)]*{_STATUS}", re.IGNORECASE | re.DOTALL),
)


def writes_of(source: str) -> list[int]:
    """Return the lines in which ``source`` writes something called ``status``."""
    tree = ast.parse(source)
    constants = _constants(tree)
    lines: set[int] = set()
    for node in ast.walk(tree):
        if any(_writes(node, constants)):
            lines.add(node.lineno)  # type: ignore[attr-defined]
    return sorted(lines)


def knows_an_outbox_table(source: str) -> bool:
    for node in ast.walk(ast.parse(source)):
        name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None)
        if isinstance(name, str) and LEADS_TO_ROWS.fullmatch(name):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMES_A_TABLE.search(node.value):
            return True
    return False


def _writes(node: ast.AST, constants: dict[str, str]) -> Iterator[bool]:
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete)):
        targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else [node.target]
        yield any(isinstance(each, ast.Attribute) and each.attr == "status" for each in _flat(targets))
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
        yield name == "setattr" and len(node.args) > 1 and _is_status(node.args[1])
        if name in WRITING_CALLS or name.endswith("OutboxMessage"):
            yield any(keyword.arg == "status" for keyword in node.keywords)
            yield any(_is_status(key) for inner in ast.walk(node) if isinstance(inner, ast.Dict) for key in inner.keys)
            yield any(
                _is_status(element)
                for argument in [*node.args, *(keyword.value for keyword in node.keywords)]
                if isinstance(argument, (ast.List, ast.Tuple, ast.Set))
                for element in argument.elts
            )
    elif isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
        text = _text(node, constants)
        yield text is not None and any(pattern.search(text) for pattern in SQL_WRITES)


def _flat(targets: list[ast.expr]) -> Iterator[ast.expr]:
    for target in targets:
        if isinstance(target, (ast.Tuple, ast.List)):
            yield from _flat(target.elts)
        else:
            yield target


def _is_status(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value == "status"


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the module's constants that are texts, or texts in a row: SQL is put together from them."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            texts = [inner.value for inner in ast.walk(node.value) if isinstance(inner, ast.Constant) and inner.value]
            if texts and all(isinstance(text, str) for text in texts):
                found.update({each.id: ", ".join(texts) for each in targets if isinstance(each, ast.Name)})
    return found


def _text(node: ast.AST, constants: dict[str, str]) -> str | None:
    """Return a text with what is known of its parts filled in, None for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants) or "…" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        names = [inner.id for inner in ast.walk(node.value) if isinstance(inner, ast.Name)]
        known = [constants[name] for name in names if name in constants]
        return ", ".join(known) if known else "…"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left, constants), _text(node.right, constants)
        return None if left is None and right is None else (left or "…") + (right or "…")
    return None


def _modules() -> list[Path]:
    return [path.relative_to(ROOT) for folder in SEARCHED for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", _modules(), ids=str)
def test_only_the_repository_writes_the_status_of_outbox_rows(path: Path) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    if path == THE_WRITER:
        assert writes_of(source), "the detector does not even find the one writer"
    elif path.parts[0] == "outbox" or knows_an_outbox_table(source):
        assert writes_of(source) == [], f"{path} writes a status; go through outbox/storage/transitions.py"


# --- the detector itself -----------------------------------------------------------------------------------------

OFFENDERS = {
    "assignment": 'row.status = "dead"',
    "assignment in a tuple": 'row.status, row.id = "dead", 1',
    "annotated assignment": 'row.status: str = "dead"',
    "augmented assignment": 'row.status += "x"',
    "setattr": 'setattr(row, "status", "dead")',
    "queryset update": 'Message.objects.filter(pk=1).update(status="dead")',
    "update by dict": 'Message.objects.update(**{"status": "dead"})',
    "create": 'Message.objects.create(status="dead")',
    "constructor": 'rows.append(AgentOutboxMessage(status="dead"))',
    "upsert": 'Message.objects.update_or_create(pk=1, defaults={"status": "dead"})',
    "bulk update": 'Message.objects.bulk_update(rows, ["status"])',
    "save": 'row.save(update_fields=["payload", "status"])',
    "SQL": 'cursor.execute("UPDATE agent_outbox_messages SET status = %s WHERE id = 1")',
    "SQL in lower case": "cursor.execute(\"update t set a = 1, status='dead' where id = 1\")",
    "quoted SQL": 'cursor.execute(\'UPDATE "t" SET "status"=%s\')',
    "SQL of a MySQL": 'cursor.execute("UPDATE t FORCE INDEX (PRIMARY) SET `status` = %s")',
    "formatted SQL": 'cursor.execute(f"UPDATE {table} SET updated_at = {now}, status = %s WHERE id IN ({ids})")',
    "SQL over lines": 'cursor.execute(f"UPDATE {table}"\n f" SET updated_at = 1,"\n " status = %s")',
    "SQL by addition": 'cursor.execute("UPDATE " + table + " SET status = %s")',
    "SQL from a constant": '_SET = "status = %s"\nsql = f"UPDATE t SET {_SET}"',
    "insert": 'cursor.execute("INSERT INTO t (id, status) VALUES (1, %s)")',
    "insert of listed columns": "_COLUMNS = ('id', 'status')\nsql = f\"INSERT INTO t ({', '.join(_COLUMNS)}) VALUES\"",
    "upsert SQL": 'cursor.execute("INSERT INTO t (id) VALUES (1) ON CONFLICT DO UPDATE SET status = EXCLUDED.status")',
    "upsert SQL of a MySQL": 'cursor.execute("REPLACE INTO t (`status`) VALUES (1)")',
}

INNOCENT = {
    "reading": "if row.status == 'dead': pass",
    "filter": 'Message.objects.filter(status="dead").update(payload="x")',
    "exclude by dict": 'Message.objects.exclude(**{"status": "dead"})',
    "field": 'status = models.CharField(max_length=32, db_default="pending")',
    "local name": 'status = "dead"',
    "response": "HttpResponse(status=400)",
    "condition": 'cursor.execute("UPDATE t SET payload = %s WHERE status = %s")',
    "select": 'cursor.execute("SELECT id, status FROM t WHERE status = %s")',
    "delete": 'cursor.execute("DELETE FROM t WHERE status = %s")',
    "insert of other columns": 'cursor.execute("INSERT INTO t (id, status_text) VALUES (1, 2)")',
    "other attribute": 'row.status_text = "dead"',
    "prose": 'note = "An update sets what a status means"',
}


@pytest.mark.parametrize("source", OFFENDERS.values(), ids=OFFENDERS)
def test_planted_offender_is_found(source: str) -> None:
    assert writes_of(source)


@pytest.mark.parametrize("source", INNOCENT.values(), ids=INNOCENT)
def test_innocent_source_is_not_accused(source: str) -> None:
    assert writes_of(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "from agent_events.agent.models import AgentOutboxMessage",
        "rows = models.TaskOutboxMessage.objects.all()",
        "class X(OutboxMessage): pass",
        'table = "agent_outbox_messages"',
        'sql = f"UPDATE memory_outbox_messages SET {x}"',
        "model = service_models()['agent']",
    ],
)
def test_module_that_knows_an_outbox_table_is_recognised(source: str) -> None:
    assert knows_an_outbox_table(source)


def test_module_with_records_of_its_own_is_left_alone() -> None:
    assert not knows_an_outbox_table(
        'from x import NotificationRecord\nNotificationRecord.objects.update(status="sent")'
    )
