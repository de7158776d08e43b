"""Uses the generated Python client as a programmer would: sends, looks, delivers, exports, extracts, downloads.

    drive.py URL TOKEN
"""

import io
import json
import sys
import time
import zipfile

from nvd_support_car_client import AuthenticatedClient
from nvd_support_car_client.api.datasets import get_dataset, list_datasets
from nvd_support_car_client.api.export_jobs import (
    create_export_job,
    download_export_job,
    get_export_job,
    list_export_jobs,
    list_export_tables,
)
from nvd_support_car_client.api.exports import download_export, get_export, list_exports, trigger_export
from nvd_support_car_client.api.extracts import (
    create_extract,
    download_extract_artifact,
    download_extract_run,
    get_extract_run,
    list_extract_runs,
    run_extract,
    update_extract,
)
from nvd_support_car_client.api.ingest import ingest_gottcha2, put_submission
from nvd_support_car_client.api.jobs import get_job
from nvd_support_car_client.api.labkey import (
    get_labkey_stats,
    get_labkey_status,
    list_labkey_deliveries,
    sync_labkey,
)
from nvd_support_car_client.api.submissions import delete_submission, get_submission, list_submissions
from nvd_support_car_client.api.system import get_version
from nvd_support_car_client.models import (
    DatasetName,
    Export,
    ExportFormat,
    ExportJob,
    ExportJobRequest,
    ExportJobStatus,
    ExportRequest,
    ExportRequestFilters,
    ExtractAnswer,
    ExtractArtifactKind,
    ExtractChange,
    ExtractFormat,
    ExtractRequest,
    ExtractRunAnswer,
    ExtractRunListAnswer,
    ExtractRunStatus,
    ExtractStartedAnswer,
    Gottcha2Record,
    Job,
    JobStatus,
    LabkeyBreaker,
    LabkeyDeliveryState,
    LabkeySendMode,
    LabkeyStats,
    LabkeyStatus,
    Problem,
    Receipt,
    RowFilter,
    Submission,
    SyncReport,
    TableName,
    TriggeredExport,
    Version,
)
from nvd_support_car_client.types import File


def lines(records: list[Gottcha2Record]) -> File:
    text = "".join(json.dumps(record.to_dict()) + "\n" for record in records)
    return File(payload=io.BytesIO(text.encode()))


def main(url: str, token: str) -> None:
    client = AuthenticatedClient(base_url=url, token=token)
    version = get_version.sync(client=client)
    assert isinstance(version, Version) and version.name == "nvd-support-car"

    # What can be sent.
    datasets = list_datasets.sync(client=client)
    assert isinstance(datasets, list) and "gottcha2" in [dataset.name for dataset in datasets]
    detail = get_dataset.sync(DatasetName.GOTTCHA2, client=client)
    assert detail and not isinstance(detail, Problem)
    assert "best_sig_cov" in [column.name for column in detail.columns]

    # Sending, and sending again.
    records = [
        Gottcha2Record(
            sample_id="S1", level="species", name=f"taxon {number}", taxid=str(number), read_count=number, total_bp_mapped=1
        )
        for number in range(1, 4)
    ]
    sent = ingest_gottcha2.sync(client=client, body=lines(records), run_id="R1", idempotency_key="python/1")
    assert isinstance(sent, Receipt) and (sent.rows, sent.replayed) == (3, False), sent
    again = ingest_gottcha2.sync(client=client, body=lines(records), run_id="R1", idempotency_key="python/1")
    assert isinstance(again, Receipt) and again.replayed and again.submission_id == sent.submission_id
    by_key = put_submission.sync(
        DatasetName.GOTTCHA2, "python/2", client=client, body=lines(records[:1]), run_id="R1", experiment=7
    )
    assert isinstance(by_key, Receipt) and by_key.key == "python/2"

    # A refusal says where.
    bad = ingest_gottcha2.sync_detailed(client=client, body=File(payload=io.BytesIO(b'{"sample_id": "S1"}\n')))
    assert bad.status_code == 422 and isinstance(bad.parsed, Problem)
    assert isinstance(bad.parsed.errors, list) and bad.parsed.errors[0].line == 1

    # What was taken in.
    page = list_submissions.sync(client=client, dataset=DatasetName.GOTTCHA2, run_id="R1")
    assert isinstance(page, list) and [submission.rows for submission in page] == [1, 3]
    assert delete_submission.sync_detailed(by_key.submission_id, client=client).status_code == 204
    found = get_submission.sync(sent.submission_id, client=client)
    assert isinstance(found, Submission) and found.run_id == "R1"

    # An export, from asking to its bytes.
    request = ExportRequest(
        table=DatasetName.GOTTCHA2,
        format_=ExportFormat.CSV,
        columns=["name", "read_count"],
        filters=ExportRequestFilters.from_dict({"run_id": "R1"}),
    )
    made = trigger_export.sync(client=client, body=request)
    assert isinstance(made, TriggeredExport) and made.export_id is not None
    job = get_job.sync(made.job_id, client=client)
    while isinstance(job, Job) and job.status in (JobStatus.PENDING, JobStatus.RUNNING):
        time.sleep(0.2)
        job = get_job.sync(made.job_id, client=client)
    assert isinstance(job, Job) and job.status == JobStatus.COMPLETED, job
    export = get_export.sync(made.export_id, client=client)
    assert isinstance(export, Export) and (export.rows, export.format_) == (3, ExportFormat.CSV)
    listed = list_exports.sync(client=client, table=DatasetName.GOTTCHA2, limit=1)
    assert isinstance(listed, list) and listed[0].id == export.id
    download = download_export.sync(export.id, client=client)
    assert isinstance(download, File) and len(download.payload.read()) == export.size_bytes

    deliver(client)
    ask_for_rows(client)
    extract_all(client)


def deliver(client: AuthenticatedClient) -> None:
    """Rows to LabKey: whether they can be delivered, and what became of them."""
    status = get_labkey_status.sync(client=client)
    assert isinstance(status, LabkeyStatus) and status.connected and status.breaker == LabkeyBreaker.CLOSED
    [gottcha2] = [one for one in status.lists if one.dataset == "gottcha2"]
    assert (gottcha2.mode, gottcha2.problems) == (LabkeySendMode.MERGE, [])
    report = sync_labkey.sync(client=client, dataset=DatasetName.GOTTCHA2)
    assert isinstance(report, SyncReport) and (report.uploaded, report.errors) == (3, []), report
    delivered = list_labkey_deliveries.sync(client=client, state=LabkeyDeliveryState.COMPLETED)
    assert isinstance(delivered, list) and sum(one.rows for one in delivered) == 3
    stats = get_labkey_stats.sync(client=client)
    assert isinstance(stats, LabkeyStats) and (stats.uploaded_count, stats.pending_count) == (3, 0)


def ask_for_rows(client: AuthenticatedClient) -> None:
    """An export job, from what there is to its bytes."""
    tables = list_export_tables.sync(client=client)
    assert isinstance(tables, list) and 3 in [table.row_estimate for table in tables]
    request = ExportJobRequest(
        table_name=TableName.GOTTCHA2,
        format_=ExportFormat.JSONL,
        columns=["name", "read_count"],
        row_limit=2,
        filters=RowFilter.from_dict({"date_from": "2026-01-01", "run_id": "R1"}),
    )
    made = create_export_job.sync(client=client, body=request, idempotency_key="python/3")
    job = made
    while isinstance(job, ExportJob) and job.status in (ExportJobStatus.PENDING, ExportJobStatus.RUNNING):
        time.sleep(0.2)
        job = get_export_job.sync(job.id, client=client)
    assert isinstance(job, ExportJob) and job.status == ExportJobStatus.COMPLETED, job
    assert isinstance(job.filters, RowFilter) and job.filters["run_id"] == "R1"
    listed = list_export_jobs.sync(client=client, table_name=TableName.GOTTCHA2_FULL, status=ExportJobStatus.COMPLETED)
    assert isinstance(listed, list) and [one.id for one in listed] == [job.id]
    download = download_export_job.sync(job.id, client=client)
    assert isinstance(download, File)
    rows = [json.loads(line) for line in download.payload.read().splitlines()]
    assert [row["read_count"] for row in rows] == [1, 2]


def extract_all(client: AuthenticatedClient) -> None:
    """An extract: made, changed, run, and its files as one ZIP and alone."""
    wanted = ExtractRequest(name="Weekly", format_=ExtractFormat.CSV, schemas=[DatasetName.GOTTCHA2], compress=False)
    made = create_extract.sync(client=client, body=wanted)
    assert isinstance(made, ExtractAnswer) and made.data.retention_days == 7
    change = ExtractChange(version=made.data.version, retention_days=3)
    changed = update_extract.sync(made.data.id, client=client, body=change)
    assert isinstance(changed, ExtractAnswer) and (changed.data.name, changed.data.retention_days) == ("Weekly", 3)
    outdated = update_extract.sync_detailed(made.data.id, client=client, body=change)
    assert outdated.status_code == 412 and isinstance(outdated.parsed, Problem)
    started = run_extract.sync(made.data.id, client=client)
    assert isinstance(started, ExtractStartedAnswer)
    run = get_extract_run.sync(started.data.run_id, client=client)
    while isinstance(run, ExtractRunAnswer) and run.data.status in (ExtractRunStatus.QUEUED, ExtractRunStatus.RUNNING):
        time.sleep(0.2)
        run = get_extract_run.sync(started.data.run_id, client=client)
    assert isinstance(run, ExtractRunAnswer) and run.data.status == ExtractRunStatus.COMPLETED, run
    [data] = [file for file in run.data.artifacts if file.kind == ExtractArtifactKind.DATA]
    assert (data.name, data.rows) == ("gottcha2.csv", 3)
    whole = download_extract_run.sync(run.data.id, client=client)
    assert isinstance(whole, File)
    with zipfile.ZipFile(whole.payload) as archive:
        assert archive.testzip() is None and data.name in archive.namelist()
    alone = download_extract_artifact.sync(data.id, client=client)
    assert isinstance(alone, File) and len(alone.payload.read()) == data.size_bytes
    runs = list_extract_runs.sync(client=client, extract_id=made.data.id, status=ExtractRunStatus.COMPLETED)
    assert isinstance(runs, ExtractRunListAnswer) and [one.id for one in runs.data] == [run.data.id]


main(sys.argv[1], sys.argv[2])
