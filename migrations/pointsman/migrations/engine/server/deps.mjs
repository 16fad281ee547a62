// The npm packages, from the directory that set-up installed them into. The server's own files stay in the Python package,
// which may be read-only, so the usual look-up through parent directories would not find them.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const modules = process.argv[2];
if (!modules) throw new Error('usage: node main.mjs <directory that holds node_modules>');
const require = createRequire(join(modules, 'package.json'));

export const pg = require('pg');
export const { parse } = require('graphql');
export const { bindAdapter, ColumnTypeEnum, ok, err } = require('@prisma/driver-adapter-utils');
export const { parse: parseArray } = require('postgres-array');

/** Prisma's query engine for Postgres; its WASM is compiled here, once (20 ms). */
export function loadQueryEngine() {
  const glue = require.resolve('@prisma/client/runtime/query_engine_bg.postgresql.js');
  const bindings = require(glue);
  const compiled = new WebAssembly.Module(readFileSync(glue.replace(/\.js$/, '.wasm')));
  const instance = new WebAssembly.Instance(compiled, { './query_engine_bg.js': bindings });
  bindings.__wbg_set_wasm(instance.exports);
  return bindings.QueryEngine;
}
