// Postgres column types (by OID) -> the types that Prisma's engine understands, and how each one's text is read.
// OIDs: src/include/catalog/pg_type.dat of PostgreSQL. Built-in types that the engine has no word for (name, interval, regclass,
// tsvector, ...) and all user-defined ones (enums, vector) go through as text.
import { ColumnTypeEnum as T, parseArray, pg } from './deps.mjs';

const asIs = (text) => text;
const bytes = (text) => Array.from(pg.types.getTypeParser(17)(text));
const utc = (text) => text.replace(/[+-]\d{2}(:\d{2}){0,2}$/, ''); // the session's time zone is UTC, the offset always +00
const money = (text) => text.replace(/[^\d.-]/g, ''); // -$1,234.56
const boolean = (text) => text === 't';

// [scalar OID, array OID, scalar type, array type, parser]
const KNOWN = [
  [16, 1000, T.Boolean, T.BooleanArray, boolean],
  [17, 1001, T.Bytes, T.BytesArray, bytes],
  [20, 1016, T.Int64, T.Int64Array, asIs],
  [21, 1005, T.Int32, T.Int32Array, Number],
  [23, 1007, T.Int32, T.Int32Array, Number],
  [26, 1028, T.Int64, T.Int64Array, asIs],
  [114, 199, T.Json, T.JsonArray, asIs],
  [3802, 3807, T.Json, T.JsonArray, asIs],
  [700, 1021, T.Float, T.FloatArray, Number],
  [701, 1022, T.Double, T.DoubleArray, Number],
  [790, 791, T.Numeric, T.NumericArray, money],
  [1700, 1231, T.Numeric, T.NumericArray, asIs],
  [1082, 1182, T.Date, T.DateArray, asIs],
  [1083, 1183, T.Time, T.TimeArray, asIs],
  [1266, 1270, T.Time, T.TimeArray, utc],
  [1114, 1115, T.DateTime, T.DateTimeArray, asIs],
  [1184, 1185, T.DateTime, T.DateTimeArray, utc],
  [2950, 2951, T.Uuid, T.UuidArray, asIs],
];
// Arrays of types that go through as text: char, name, text, bpchar, varchar, xml, bit, varbit, cidr, inet, macaddr, interval.
const TEXT_ARRAYS = [1002, 1003, 1009, 1014, 1015, 143, 1561, 1563, 651, 1041, 1040, 1187];

const COLUMN_TYPES = new Map();
const PARSERS = new Map();
for (const [scalar, array, type, arrayType, parser] of KNOWN) {
  COLUMN_TYPES.set(scalar, type).set(array, arrayType);
  PARSERS.set(scalar, parser).set(array, (text) => parseArray(text, parser));
}
for (const array of TEXT_ARRAYS) {
  COLUMN_TYPES.set(array, T.TextArray);
  PARSERS.set(array, (text) => parseArray(text, asIs));
}

/** The engine's name for a column's type. */
export const columnType = (oid) => COLUMN_TYPES.get(oid) ?? T.Text;

/** What `pg` asks for a parser of a column's text. */
export const typeParsers = { getTypeParser: (oid) => PARSERS.get(oid) ?? asIs };
