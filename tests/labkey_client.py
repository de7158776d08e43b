"""Drives the stand-in for LabKey Server with LabKey's own client: labkey_client.py HOST:PORT CONTAINER KEY

Expects the two empty lists of tests/it/labkey_client.rs. Ends with an error if the client meets anything else than it
would at a LabKey server.
"""
import io
import sys

from labkey.api_wrapper import APIWrapper
from labkey.exceptions import (
    QueryNotFoundError,
    RequestAuthorizationError,
    ServerContextError,
    ServerNotFoundError,
    UnexpectedRedirectError,
)
from labkey.query import AuditBehavior, InsertOption, QueryFilter

server, container, key = sys.argv[1:]


def connect(api_key=key, folder=container, **options):
    return APIWrapper(server, folder, use_ssl=False, api_key=api_key, **options)


def fails(error, message, call, *arguments, **options):
    try:
        answer = call(*arguments, **options)
    except error as caught:
        assert type(caught) is error, repr(caught)
        assert message in str(caught), str(caught)
    else:
        raise AssertionError(f"no {error.__name__} but {answer}")


labkey = connect()
query = labkey.query

# Who asks.
me = labkey.security.who_am_i()
assert (me.id, me.email, len(me.CSRF)) == (1005, "nvd-bot@example.org", 64), me
guest = connect(api_key=None)
assert (guest.security.who_am_i().id, guest.security.who_am_i().email) == (0, "guest")
fails(RequestAuthorizationError, "User does not have permission", guest.query.select_rows, "lists", "hits")
stranger = connect(api_key="wrong")
fails(RequestAuthorizationError, "did not match any accounts", stranger.query.select_rows, "lists", "hits")
bare = connect(disable_csrf=True)
assert bare.query.select_rows("lists", "hits")["rows"] == []
row = [{"SAMPLE": "S1"}]
fails(RequestAuthorizationError, "invalid security context", bare.query.insert_rows, "lists", "hits", row)

# Insert: rows with their keys, all or none.
rows = [
    {"SAMPLE": "S1", "READ_COUNT": 10, "EXCLUDE": False, "NO_SUCH_COLUMN": 1},
    {"sample": "S2", "READ_COUNT": 20, "EXCLUDE": "true", "UploadTimestamp": "2026-11-20T10:00:00Z"},
]
answer = query.insert_rows(
    "lists", "hits", rows, audit_behavior=AuditBehavior.SUMMARY, audit_user_comment="delivery 1"
)
assert (answer["command"], answer["containerPath"], answer["rowsAffected"]) == ("insert", container, 2), answer
assert [(row["Key"], row["SAMPLE"]) for row in answer["rows"]] == [(1, "S1"), (2, "S2")], answer
assert answer["transactionAuditId"] > 0
answer = query.insert_rows("lists", "hits", [{"SAMPLE": "S3"}, {"SAMPLE": "S4"}], skip_reselect_rows=True)
assert answer["rowsAffected"] == 2 and "transactionAuditId" not in answer, answer
bad = [{"SAMPLE": "S5"}, {"SAMPLE": "S6", "READ_COUNT": 3_000_000_000}]
fails(
    ServerContextError, "400: Could not convert value '3000000000' (Long) for Integer field 'READ_COUNT'",
    query.insert_rows, "lists", "hits", bad,
)
missing = "Missing value for required property: SAMPLE"
fails(ServerContextError, missing, query.insert_rows, "lists", "hits", [{"READ_COUNT": 1}])
fails(ServerContextError, "No 'rows' array supplied.", query.insert_rows, "lists", "hits", [])
missing = "500: The query 'hit' in the schema 'lists' does not exist."
fails(ServerContextError, missing, query.insert_rows, "lists", "hit", rows)

# Select.
found = query.select_rows("lists", "hits", filter_array=[QueryFilter("SAMPLE", "S2")])
assert (found["schemaName"], found["queryName"], found["rowCount"]) == ("lists", "hits", 1), found
row = found["rows"][0]
assert (row["Key"], row["READ_COUNT"], row["EXCLUDE"]) == (2, 20, True), row
assert row["UploadTimestamp"] == "2026-11-20 10:00:00.000", row
among = QueryFilter("SAMPLE", "S1;S3;S9", QueryFilter.Types.IN)
assert [row["SAMPLE"] for row in query.select_rows("lists", "hits", filter_array=[among])["rows"]] == ["S1", "S3"]
blank = [QueryFilter("READ_COUNT", "", QueryFilter.Types.IS_BLANK), QueryFilter("SAMPLE", "S3", QueryFilter.Types.NEQ)]
assert [row["SAMPLE"] for row in query.select_rows("lists", "hits", filter_array=blank)["rows"]] == ["S4"]
page = query.select_rows("lists", "hits", columns="SAMPLE", sort="-SAMPLE", max_rows=1, offset=1)
assert page["rows"] == [{"SAMPLE": "S3", "Key": 3}] and page["rowCount"] == 4, page
row = query.select_rows("lists", "hits", max_rows=1, required_version=9.1)["rows"][0]
assert row["SAMPLE"] == {"value": "S1"}, row
fails(QueryNotFoundError, "'hit' does not exist", query.select_rows, "lists", "hit")
fails(QueryNotFoundError, "No such project: /NVD/Nope", connect(folder="NVD/Nope").query.select_rows, "lists", "hits")
url = labkey.server_context.build_url("query", "noSuchAction.api")
fails(ServerNotFoundError, "404: Server resource not found", labkey.server_context.make_request, url)

# Update and delete; the first attempts find the server shutting down, and somewhere else.
fails(ServerContextError, "503: Server Error", query.delete_rows, "lists", "hits", [{"Key": 1}])
fails(UnexpectedRedirectError, "Redirected from http to https", query.delete_rows, "lists", "hits", [{"Key": 1}])
assert query.delete_rows("lists", "hits", [{"Key": 1}])["rowsAffected"] == 1
answer = query.update_rows("lists", "hits", [{"Key": 3, "READ_COUNT": 30}])
assert (answer["rows"][0]["SAMPLE"], answer["rows"][0]["READ_COUNT"]) == ("S3", 30), answer
fails(QueryNotFoundError, "The existing row was not found.", query.update_rows, "lists", "hits", [{"Key": 1}])
commands = [
    {"command": "delete", "schema_name": "lists", "query_name": "hits", "rows": [{"Key": 3}]},
    {"command": "update", "schema_name": "lists", "query_name": "hits", "rows": [{"Key": 4, "READ_COUNT": "none"}]},
]
fails(ServerContextError, "Could not convert value 'none' (String)", query.save_rows, commands)
commands[1]["rows"] = [{"Key": 4, "READ_COUNT": None}]
answer = query.save_rows(commands, validate_only=True)
assert (answer["committed"], answer["errorCount"]) == (False, 0), answer
answer = query.save_rows(commands)
assert (answer["committed"], [part["command"] for part in answer["result"]]) == (True, ["delete", "update"]), answer

# Import: from text and from a file, as often as wanted where clients give the keys, and never a failing status.
text = 'RecordKey\tSAMPLE\tREAD_COUNT\na\t"S 1, ""one"""\t1\nb\tS2\t2\n'
for _ in range(2):
    answer = query.import_rows(
        "lists", "records", text=text, insert_option=InsertOption.MERGE,
        audit_behavior=AuditBehavior.SUMMARY, audit_user_comment="delivery 2",
    )
    assert (answer["success"], answer["rowCount"]) == (True, 2), answer
    file = io.StringIO("RecordKey,READ_COUNT\nb,22\nc,3\n")
    file.name = "records.csv"
    answer = query.import_rows("lists", "records", data_file=file, insert_option=InsertOption.MERGE)
    assert answer == {"success": True, "rowCount": 2}, answer
answer = query.import_rows("lists", "records", text="RecordKey\na")
assert answer["success"] is False and "duplicate key value" in answer["exception"], answer
answer = query.import_rows("lists", "hits", text="SAMPLE\nS9", insert_option=InsertOption.MERGE)
assert answer["exception"] == "MERGE action is not supported for hits.", answer
print(sys.argv[0], "is content")
