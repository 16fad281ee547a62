// Prisma's command line on its schema engine as WASM: it reaches the database by a driver adapter, so no native engine is wanted.
import { PrismaPg } from '@prisma/adapter-pg';
import pg from 'pg';

const CHAR = 18;
const NAME = 19;
const TEXT = 25;
const CHARACTER = 6;

/**
 * The adapter as it comes refuses two types that the schema engine reads from Postgres's catalogs ("char" and name), and cuts a
 * migration at each semicolon, those in function bodies too. The command line, its engine and the SQL are Prisma's own.
 */
function complete(adapter, pool) {
  let characters = [];
  adapter.client = {
    connect: () => pool.connect(),
    query: async (...all) => {
      const result = await pool.query(...all);
      characters = result.fields.flatMap((field, index) => (field.dataTypeID === CHAR ? [index] : []));
      for (const field of result.fields) if (field.dataTypeID === CHAR || field.dataTypeID === NAME) field.dataTypeID = TEXT;
      return result;
    },
  };
  const queryRaw = adapter.queryRaw.bind(adapter);
  adapter.queryRaw = async (query) => {
    const result = await queryRaw(query);
    for (const index of characters) result.columnTypes[index] = CHARACTER;
    return result;
  };
  adapter.executeScript = async (script) => {
    await pool.query(script);
  };
  return adapter;
}

export default {
  experimental: { adapter: true },
  engine: 'js',
  schema: process.env.SCHEMA_FILE,
  migrations: { path: process.env.MIGRATIONS },
  adapter: async () => {
    const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 1, allowExitOnIdle: true });
    const factory = new PrismaPg(pool, { disposeExternalPool: true });
    const connect = factory.connect.bind(factory);
    factory.connect = async () => complete(await connect(), pool);
    return factory;
  },
};
