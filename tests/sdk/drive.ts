// Uses the generated TypeScript client as a programmer would: sends, looks, delivers, exports, extracts, downloads.
//
//   drive.js URL TOKEN

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { type Schemas, nvdSupportCar } from "./client.ts";

const [url, token] = process.argv.slice(2);
assert(url && token);
const client = nvdSupportCar(url, token);

/** The data of an answer that must be one. */
function good<T>(answer: { data?: T; error?: Schemas["Problem"] }): T {
  assert(answer.data !== undefined, answer.error?.detail);
  return answer.data;
}

const file = (records: Schemas["Gottcha2Record"][]): Blob =>
  new Blob(records.map((record) => `${JSON.stringify(record)}\n`));

// What can be sent.
const datasets = good(await client.GET("/datasets"));
assert(datasets.some((dataset) => dataset.name === "gottcha2"));

// Sending, and sending again.
const records = [1, 2, 3].map((count) => ({
  sample_id: "S2", level: "species", name: `taxon ${count}`, taxid: String(count), read_count: count, total_bp_mapped: 1,
}));
const request = { params: { query: { run_id: "R2" }, header: { "Idempotency-Key": "ts/1" } }, body: file(records) };
const sent: Schemas["Receipt"] = good(await client.POST("/ingest-gottcha2", request));
assert.deepEqual([sent.rows, sent.replayed], [3, false]);
const again = good(await client.POST("/ingest-gottcha2", request));
assert.deepEqual([again.submission_id, again.replayed], [sent.submission_id, true]);
const path = { dataset: "gottcha2", key: "ts/2" } as const;
const byKey = good(await client.PUT("/ingest/{dataset}/{key}", { params: { path }, body: file(records.slice(0, 1)) }));
assert.equal(byKey.key, "ts/2");

// A refusal says where.
const bad = await client.POST("/ingest-gottcha2", { body: new Blob(['{"sample_id": "S2"}\n']) });
assert.equal(bad.response.status, 422);
assert.equal(bad.error?.errors?.[0]?.line, 1);

// What was taken in.
const page = good(await client.GET("/submissions", { params: { query: { dataset: "gottcha2", run_id: "R2" } } }));
assert.deepEqual(page.map((submission) => submission.submission_id), [sent.submission_id]);

// An export, from asking to its bytes.
const wanted: Schemas["ExportRequest"] = { table: "gottcha2", format: "jsonl", filters: { run_id: "R2" } };
const made = good(await client.POST("/exports/trigger", { body: wanted }));
let job: Schemas["Job"];
do {
  await sleep(200);
  job = good(await client.GET("/jobs/{id}", { params: { path: { id: made.job_id } } }));
} while (job.status === "pending" || job.status === "running");
assert.equal(job.status, "completed");
assert(made.export_id);
const id = { params: { path: { id: made.export_id } } };
const whole = good(await client.GET("/exports/{id}", id));
assert.equal(whole.rows, 3);
const bytes = good(await client.GET("/exports/{id}/download", { ...id, parseAs: "blob" }));
assert.equal(bytes.size, whole.size_bytes);
const listed = good(await client.GET("/exports", { params: { query: { table: "gottcha2", status: "completed" } } }));
assert.equal(listed[0]?.id, whole.id);

// Rows to LabKey: whether they can be delivered, and what became of them.
const status = good(await client.GET("/labkey/status"));
assert.deepEqual([status.connected, status.breaker], [true, "closed"]);
const list = status.lists.find((one) => one.dataset === "gottcha2");
assert.deepEqual([list?.mode, list?.problems], ["merge", []]);
const report = good(await client.POST("/labkey/sync", { params: { query: { dataset: "gottcha2" } } }));
assert("uploaded" in report);
assert.deepEqual([report.uploaded, report.errors], [4, []]);
const delivered = good(await client.GET("/labkey/deliveries", { params: { query: { state: "completed" } } }));
assert.equal(delivered.reduce((rows, one) => rows + one.rows, 0), 4);
const stats: Schemas["LabkeyStats"] = good(await client.GET("/labkey/stats"));
assert.deepEqual([stats.uploaded_count, stats.pending_count], [4, 0]);

// An export job, from what there is to its bytes.
const tables = good(await client.GET("/api/v1/export/tables"));
assert.equal(tables.find((table) => table.table_name === "gottcha2")?.row_estimate, 4);
const asked: Schemas["ExportJobRequest"] = {
  table_name: "gottcha2", format: "csv", columns: ["name", "read_count"], row_limit: 2,
  filters: { date_from: "2026-01-01", run_id: "R2" },
};
let exported: Schemas["ExportJob"] = good(await client.POST("/api/v1/export/jobs", { body: asked }));
const number = { params: { path: { id: exported.id } } };
while (exported.status === "pending" || exported.status === "running") {
  await sleep(200);
  exported = good(await client.GET("/api/v1/export/jobs/{id}", number));
}
assert.equal(exported.status, "completed");
assert.equal(exported.filters?.["run_id"], "R2");
const text = await good(await client.GET("/api/v1/export/jobs/{id}/download", { ...number, parseAs: "blob" })).text();
assert.equal(text, "name,read_count\r\ntaxon 1,1\r\ntaxon 2,2\r\n");

// An extract: made, changed, run, and its files as one ZIP and alone.
const weekly: Schemas["ExtractRequest"] = { name: "Weekly", format: "csv", schemas: ["gottcha2"], compress: false };
const extract: Schemas["Extract"] = good(await client.POST("/api/data/extracts", { body: weekly })).data;
assert.equal(extract.retention_days, 7);
const extractPath = { params: { path: { id: extract.id } } };
const change = { body: { version: extract.version, retention_days: 3 } };
const changed = good(await client.PUT("/api/data/extracts/{id}", { ...extractPath, ...change })).data;
assert.deepEqual([changed.name, changed.retention_days], ["Weekly", 3]);
const outdated = await client.PUT("/api/data/extracts/{id}", { ...extractPath, ...change });
assert.equal(outdated.response.status, 412);
const started = good(await client.POST("/api/extracts/{id}/run", extractPath)).data;
const runPath = { params: { path: { runId: started.run_id } } };
let run: Schemas["ExtractRun"];
do {
  await sleep(200);
  run = good(await client.GET("/api/data/extract_runs/{runId}", runPath)).data;
} while (run.status === "queued" || run.status === "running");
assert.equal(run.status, "completed");
const table = run.artifacts.find((artifact) => artifact.kind === "data");
assert(table);
assert.deepEqual([table.name, table.rows], ["gottcha2.csv", 4]);
const archive = good(await client.GET("/api/extracts/runs/{runId}/download", { ...runPath, parseAs: "blob" }));
assert.equal((await archive.text()).slice(0, 2), "PK");
const artifactPath = { params: { path: { artifactId: table.id } } };
const alone = good(
  await client.GET("/api/extracts/artifacts/{artifactId}/download", { ...artifactPath, parseAs: "blob" }),
);
assert.equal(alone.size, table.size_bytes);
const runs = good(await client.GET("/api/data/extract_runs", { params: { query: { extract_id: extract.id } } }));
assert.deepEqual(runs.data.map((one) => one.id), [run.id]);
