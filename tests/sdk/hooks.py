"""What no OpenAPI description can say: which records a body holds, which columns a dataset has."""

import json
import random
import string

import schemathesis
from schemathesis.core import NotSet
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import TestPhase

DATASETS = {
    "/ingest-gottcha2": "gottcha2",
    "/ingest-stast": "stast",
    "/ingest": "results",
}


@schemathesis.hook
def before_call(context, case, kwargs):
    """Completes requests that are to be accepted; those that are to be refused stay as they are."""
    body_is_bad = case.meta is None or case.meta.is_negative_at(ParameterLocation.BODY)
    if body_is_bad or isinstance(case.body, NotSet):
        return
    # The examples of the description are sent as they are.
    if case.path.startswith("/ingest") and case.meta.phase.name != TestPhase.EXAMPLES:
        send_records(case)
    if isinstance(case.body, dict):
        # To JSON Schema 5.0 is an integer.
        case.body.update((name, int(value)) for name, value in case.body.items() if is_whole(value))
    if case.path == "/exports/trigger":
        export_what_there_is(case, case.body["table"])
    if case.path == "/api/v1/export/jobs":
        table = case.body["table_name"]
        export_what_there_is(case, {"gottcha2_full": "gottcha2", "stast_table": "stast"}.get(table, table))
    if case.path.startswith("/api/data/extracts"):
        extract_what_there_is(case)


def is_whole(value):
    """Whether a number with a point is a whole one."""
    return isinstance(value, float) and value.is_integer()


def send_records(case):
    """Puts records where random bytes were, as many and such as the bytes tell."""
    schema = record_schema(case, DATASETS.get(case.path) or case.path_parameters.get("dataset"))
    if schema is not None:
        chance = random.Random(repr(case.body))
        records = [one_of(schema, chance) for _ in range(chance.randint(1, 4))]
        case.body = "".join(json.dumps(record, ensure_ascii=chance.random() < 0.5) + "\n" for record in records)
        known = {"on_conflict", *schema["properties"]}
        case.query = {name: value for name, value in case.query.items() if name in known}


def export_what_there_is(case, table):
    """Names columns of the dataset, and leaves out what excludes each other."""
    for field in ["compression", "compression_level", "to"]:
        case.body.pop(field, None)
    if case.body.get("partition") is None:
        case.body.pop("overwrite", None)
    else:
        # Partitions hold whole submissions with all their columns, and are cut by columns that there are.
        case.body["partition"].update(temporal="year,month,day", by=[])
        for field in ["columns", "filters", "labkey_columns", "row_limit"]:
            case.body.pop(field, None)
    schema = record_schema(case, table)
    names = list(schema["properties"]) if schema else []
    if case.body.get("columns"):
        case.body["columns"] = names[: len(case.body["columns"])]
    if case.body.get("filters"):
        case.body["filters"] = {"run_id": "R1"}


def extract_what_there_is(case):
    """Says when only as cron does, filters only what is extracted, and tells only webhooks that there are: none."""
    body = case.body
    for field, known in [("schedule", "0 5 * * *"), ("timezone", "America/Chicago")]:
        if body.get(field) is not None:
            body[field] = known
    if body.get("schedule") is None:
        body.pop("schedule_enabled", None)
    if body.get("filter") is not None:
        body["filter"] = {"gottcha2": {"run_id": "R1"}} if "gottcha2" in (body.get("schemas") or ["gottcha2"]) else {}
    if body.get("notify") is not None:
        body["notify"] = []
    if case.method == "PUT":
        # Which version holds, only the extract tells; the first does until it is changed.
        body["version"] = 1


def record_schema(case, dataset):
    """The schema of a dataset's record; none of what is no dataset."""
    name = "".join(word.capitalize() for word in str(dataset).split("_")) + "Record"
    return case.operation.schema.raw_schema["components"]["schemas"].get(name)


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Passes over what is no failure."""
    # A job without an export has the id null, which schemathesis asks for all the same.
    asks_for_null = "/None" in response.request.url
    # An extract that was changed is no more at the version that is named here.
    is_outdated = response.status_code == 412 and "positive_data_acceptance" in failure.checks
    # A change is checked together with what it leaves as it was: one may take away the schedule that another has enabled.
    is_half = (
        response.request.method == "PUT"
        and response.status_code == 422
        and "`schedule_enabled` needs a cron expression" in response.text
        and "positive_data_acceptance" in failure.checks
    )
    # A flag may stand alone: `allowEmptyValue` says so, which schemathesis does not read.
    is_flag = response.request.url.endswith("/run?wait=") and "negative_data_rejection" in failure.checks
    # OpenAPI 3.1 has the schema of a stream describe all of it, schemathesis takes it for that of each event.
    is_event = failure.title == "SSE event violates schema"
    return not (asks_for_null or is_outdated or is_half or is_flag or is_event)


def one_of(schema: dict, chance: random.Random) -> object:
    """A value that the schema allows."""
    kinds = schema.get("type", ["object", "string", "number", "boolean", "null", "array"])
    kind = chance.choice([kinds] if isinstance(kinds, str) else kinds)
    low, high = schema.get("minimum"), schema.get("maximum")
    if kind == "object":
        names = [name for name in schema.get("properties", {}) if name in schema["required"] or chance.random() < 0.7]
        chance.shuffle(names)
        record = {name: one_of(schema["properties"][name], chance) for name in names}
        # Unknown fields are kept.
        return record | ({text(chance): text(chance)} if chance.random() < 0.2 else {})
    if kind == "array":
        return [text(chance), None, {}]
    if kind == "integer":
        low, high = -(2**63) if low is None else low, 2**63 - 1 if high is None else high
        return chance.choice([low, high, chance.randint(low, high), max(low, min(high, 1))])
    if kind == "number":
        low, high = -1.7e308 if low is None else low, 1.7e308 if high is None else high
        return chance.choice([low, high, chance.uniform(low / 2, high / 2), max(low, min(high, 5e-324))])
    if kind == "string" and schema.get("format") == "date-time":
        return chance.choice(["2026-11-20T08:15:00Z", "1999-12-31T23:59:59.999999+14:00", "2024-02-29t00:00:00-00:30"])
    return {"string": text(chance), "boolean": chance.random() < 0.5, "null": None}[kind]


def text(chance: random.Random) -> str:
    """Any text: letters, what JSON has to escape, and what lies beyond 16 bits."""
    letters = string.ascii_letters + " \t\n\r\"\\/<>&'äß\u2028\ufeff\U0001f9a0"
    return "".join(chance.choice(letters) for _ in range(chance.randint(1, 12)))
