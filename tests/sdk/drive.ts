// Uses the generated TypeScript client as a programmer would: sends, looks, exports, downloads.
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
