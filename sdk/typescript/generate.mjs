// Writes schema.ts: the types of an OpenAPI description. Binary bodies are `Blob`, which fetch sends and answers with.
//
//   node generate.mjs openapi.json

import { readFile, writeFile } from "node:fs/promises";
import openapi, { astToString } from "openapi-typescript";
import ts from "typescript";

const description = JSON.parse(await readFile(process.argv[2], "utf8"));
const types = await openapi(description, {
  transform: (schema) =>
    schema.format === "binary" ? ts.factory.createTypeReferenceNode("Blob") : undefined,
});
await writeFile("schema.ts", astToString(types));
