// One run as the browser knows it: a report of the server and the events after it put together.

const LISTS = ["validation", "previews", "messages"];

/** Whether an event continues what is there, or the whole run must be asked for again. */
export function follows(run, report) {
  if (report.from.points === 0 && LISTS.every((name) => report.from[name] === 0)) return true;
  return (
    run !== undefined &&
    run.id === report.id &&
    run.stride === report.stride &&
    report.from.points <= run.points.step.length &&
    LISTS.every((name) => report.from[name] <= run[name].length)
  );
}

/** The run with a report merged in; the report must follow on the run. */
export function merge(run, report) {
  const merged = { ...report, points: columnsAfter(run?.points, report) };
  for (const name of LISTS) {
    merged[name] = [...(run?.[name] ?? []).slice(0, report.from[name]), ...report[name]];
  }
  return merged;
}

function columnsAfter(before, { points, from }) {
  const start = from.points;
  const old = before?.step.slice(0, start) ?? [];
  const columns = { step: [...old, ...points.step] };
  for (const [name, series] of Object.entries(points)) {
    if (name === "step") continue;
    columns[name] = {};
    for (const [kind, values] of Object.entries(series)) {
      // A series that began late is missing in the points before.
      const head = before?.[name]?.[kind].slice(0, start) ?? old.map(() => null);
      columns[name][kind] = [...head, ...values];
    }
  }
  return columns;
}

export const isOver = (run) => ["finished", "cancelled", "failed"].includes(run.status);
