/**
 * `strftime_now(format)` of chat templates (R3): the date that some models are told. Local time of this process, English
 * names, as Python has them in the C locale; the engine's host should be in the same zone. Pure.
 */

const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
const MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
];
const DAY_MS = 86_400_000;

const twoDigits = (value: number): string => String(value).padStart(2, '0');
const hour12 = (date: Date): number => date.getHours() % 12 || 12;

function dayOfYear(date: Date): number {
  // By UTC dates, so that a change to summer time between the two does not count as an hour.
  const today = Date.UTC(date.getFullYear(), date.getMonth(), date.getDate());
  return (today - Date.UTC(date.getFullYear(), 0, 0)) / DAY_MS;
}

const DIRECTIVES: Readonly<Record<string, (date: Date) => string>> = {
  a: date => DAYS[date.getDay()]!.slice(0, 3),
  A: date => DAYS[date.getDay()]!,
  b: date => MONTHS[date.getMonth()]!.slice(0, 3),
  B: date => MONTHS[date.getMonth()]!,
  d: date => twoDigits(date.getDate()),
  '-d': date => String(date.getDate()),
  e: date => String(date.getDate()).padStart(2, ' '),
  m: date => twoDigits(date.getMonth() + 1),
  '-m': date => String(date.getMonth() + 1),
  y: date => twoDigits(date.getFullYear() % 100),
  Y: date => String(date.getFullYear()),
  H: date => twoDigits(date.getHours()),
  I: date => twoDigits(hour12(date)),
  '-I': date => String(hour12(date)),
  M: date => twoDigits(date.getMinutes()),
  S: date => twoDigits(date.getSeconds()),
  p: date => (date.getHours() < 12 ? 'AM' : 'PM'),
  j: date => String(dayOfYear(date)).padStart(3, '0'),
  F: date => `${date.getFullYear()}-${twoDigits(date.getMonth() + 1)}-${twoDigits(date.getDate())}`,
  T: date => `${twoDigits(date.getHours())}:${twoDigits(date.getMinutes())}:${twoDigits(date.getSeconds())}`,
  '%': () => '%',
};

/** `format` with the directives of Python's strftime filled in. Throws for one that is not in the table. */
export function strftime(format: string, wallMs: number): string {
  const date = new Date(wallMs);
  return format.replace(/%(-?[\s\S]|$)/g, (whole, name: string) => {
    if (!Object.hasOwn(DIRECTIVES, name)) throw new Error(`strftime_now does not know "${whole}"`);
    return DIRECTIVES[name]!(date);
  });
}
