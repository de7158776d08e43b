// Sends one result file with node alone: node 22.18 and newer run it as it is, others what tsc makes of it.
//
//   node nvd_send.ts FILE DATASET [COLUMN=VALUE ...]     node nvd_send.ts a.full.tsv gottcha2 sample_id=S1 run_id=R1
//
// NVD_SUPPORT_URL is the service, NVD_BEARER_TOKEN the token. Ends with 0 when the file is stored, now or before, 65
// when the data are bad, 75 when another try may succeed, 77 when the token is refused, 78 for everything else.

import { readFile } from "node:fs/promises";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";

const MAX_TIME = 3_600_000;
const PASSING = new Set([408, 429, 500, 502, 503, 504]);
const EXIT = new Map([[400, 65], [409, 65], [413, 65], [422, 65], [401, 77], [403, 77]]);

/** What a try came to; status 0 is no answer. */
type Outcome = { status: number; text: string; wait: number };

async function attempt(url: URL, body: Uint8Array<ArrayBuffer>): Promise<Outcome> {
  try {
    const headers = { Authorization: `Bearer ${process.env.NVD_BEARER_TOKEN}` };
    const answer = await fetch(url, { method: "POST", headers, body, signal: AbortSignal.timeout(300_000) });
    const wait = Number(answer.headers.get("retry-after") ?? 0) * 1000 || 0;
    return { status: answer.status, text: await answer.text(), wait };
  } catch (error) {
    return { status: 0, text: String(error), wait: 0 };
  }
}

/** Sends until it is stored, refused, or out of time. Without a key the content is the key, so that is safe. */
async function send(file: string, dataset: string, columns: string[]): Promise<number> {
  const base = String(process.env.NVD_SUPPORT_URL).replace(/\/$/, "");
  const url = new URL(`${base}/ingest/${encodeURIComponent(dataset)}`);
  for (const column of columns) {
    const [name = "", ...value] = column.split("=");
    url.searchParams.append(name, value.join("="));
  }
  const body = new Uint8Array(await readFile(file));
  const deadline = Date.now() + MAX_TIME;
  for (let pause = 500; ; pause = Math.min(pause * 2, 60_000)) {
    const { status, text, wait } = await attempt(url, body);
    if (status >= 200 && status < 300) {
      console.log(text);
      return 0;
    }
    console.error(`${file}: ${status || "no answer"}: ${text}`);
    if (status && !PASSING.has(status)) return EXIT.get(status) ?? 78;
    // Full jitter: clients that were sent away together shall not come back together.
    const delay = wait + Math.random() * pause;
    if (Date.now() + delay > deadline) return 75;
    await sleep(delay);
  }
}

const [file, dataset, ...columns] = process.argv.slice(2);
if (!file || !dataset || !process.env.NVD_SUPPORT_URL || !process.env.NVD_BEARER_TOKEN) {
  console.error("usage: NVD_SUPPORT_URL=... NVD_BEARER_TOKEN=... nvd_send.ts FILE DATASET [COLUMN=VALUE ...]");
  process.exit(78);
}
process.exitCode = await send(file, dataset, columns);
