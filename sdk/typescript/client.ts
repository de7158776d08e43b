// A typed client: `nvdSupportCar(url, token).POST("/ingest-gottcha2", { body: file })`.

import createClient, { type Client } from "openapi-fetch";
import type { components, paths } from "./schema.ts";

/** The schemas of the service, such as `Schemas["Receipt"]`. */
export type Schemas = components["schemas"];

/** A client of the service at `url`. Files (`Blob`) are sent as they are, everything else as JSON. */
export function nvdSupportCar(url: string, token: string): Client<paths> {
  return createClient<paths>({
    baseUrl: url,
    headers: { Authorization: `Bearer ${token}` },
    bodySerializer: (body: unknown) => (body instanceof Blob ? body : JSON.stringify(body)),
  });
}
