// Log lines for the supervisor: one JSON object a line on stdout. Nothing else may be written there.
export function log(level, message, extra = {}) {
  process.stdout.write(`${JSON.stringify({ level, message, ...extra })}\n`);
}
