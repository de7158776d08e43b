"""Uses the generated Python client as a programmer would: sends, looks, exports, downloads.

    drive.py URL TOKEN
"""

import io
import json
import sys
import time

from nvd_support_car_client import AuthenticatedClient
from nvd_support_car_client.api.datasets import get_dataset, list_datasets
from nvd_support_car_client.api.exports import download_export, get_export, list_exports, trigger_export
from nvd_support_car_client.api.ingest import ingest_gottcha2, put_submission
from nvd_support_car_client.api.jobs import get_job
from nvd_support_car_client.api.submissions import delete_submission, get_submission, list_submissions
from nvd_support_car_client.api.system import get_version
from nvd_support_car_client.models import (
    DatasetName,
    Export,
    ExportFormat,
    ExportJob,
    ExportRequest,
    ExportRequestFilters,
    Gottcha2Record,
    Job,
    JobStatus,
    Problem,
    Receipt,
    Submission,
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
    assert isinstance(made, ExportJob) and made.export_id is not None
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


main(sys.argv[1], sys.argv[2])
