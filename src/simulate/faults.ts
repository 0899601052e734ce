/**
 * Faults that a mock engine commits on purpose: per request, by a seeded draw (`--faults error500=0.05,stall=0.01`) or
 * armed by a test for the next request. Counts each one that really happened, so a fault test can prove that the fault
 * it is about took place. Owned by one mock engine.
 */
import { ConfigError } from '../errors.js';
import type { Random } from '../runtime/random.js';

/**
 * refuse: close the connection before anything is read · error500: answer a JSON error · halfFrame: some tokens, then
 * half a frame, then close · stall: some tokens, then never anything again · dieBefore: close before the first token ·
 * dieAfter: close after some tokens · reset: send the headers, then close · handoverFailure: blocks are not handed over,
 * by the side that met the fault · handoverStall: half of them are, or none, and then never anything again · badFrame: some
 * tokens, then a frame that is no JSON, then never anything again.
 */
export const FAULT_KINDS = [
  'refuse',
  'error500',
  'halfFrame',
  'stall',
  'dieBefore',
  'dieAfter',
  'reset',
  'handoverFailure',
  'handoverStall',
  'badFrame',
] as const;

/** One kind of fault; see FAULT_KINDS. */
export type FaultKind = (typeof FAULT_KINDS)[number];

/** Probability of each kind, per request. */
export type FaultRates = Readonly<Partial<Record<FaultKind, number>>>;

/** A fault that one request will meet. */
export interface Fault {
  readonly kind: FaultKind;
  /** Tokens of the first choice that are sent first, for the kinds that send some. */
  readonly afterTokens: number;
}

/** Most tokens before a drawn fault strikes. */
const AFTER_TOKENS_MAX = 8;

function isFaultKind(text: string): text is FaultKind {
  return (FAULT_KINDS as readonly string[]).includes(text);
}

/** Reads `kind=rate,kind=rate`. Throws ConfigError that names the kind, or the range of the rate. */
export function parseFaultRates(text: string): FaultRates {
  const rates: Partial<Record<FaultKind, number>> = {};
  for (const part of text.split(',').filter(piece => piece.trim() !== '')) {
    const [kind = '', value = ''] = part.split('=').map(piece => piece.trim());
    if (!isFaultKind(kind))
      throw new ConfigError(`faults: unknown kind '${kind}'; known: ${FAULT_KINDS.join(', ')}`, {
        param: 'faults',
      });
    const rate = value === '' ? Number.NaN : Number(value);
    if (!(rate >= 0 && rate <= 1))
      throw new ConfigError(`faults: ${kind} must be a number from 0 to 1; got '${value}'`, {
        param: 'faults',
      });
    rates[kind] = rate;
  }
  const sum = Object.values(rates).reduce((total, rate) => total + rate, 0);
  if (sum > 1)
    throw new ConfigError(`faults: the rates add up to ${sum}, and may not pass 1`, { param: 'faults' });
  return rates;
}

/** Decides which request meets which fault. */
export class FaultPlan {
  /** Faults that took place, by kind. */
  readonly fired: Record<FaultKind, number> = {
    refuse: 0,
    error500: 0,
    halfFrame: 0,
    stall: 0,
    dieBefore: 0,
    dieAfter: 0,
    reset: 0,
    handoverFailure: 0,
    handoverStall: 0,
    badFrame: 0,
  };
  readonly #rates: FaultRates;
  readonly #random: Random;
  readonly #armed: Fault[] = [];

  constructor(rates: FaultRates, random: Random) {
    this.#rates = rates;
    this.#random = random;
  }

  /** Arms a fault for the next generation request that has none; several queue up in order. */
  next(kind: FaultKind, afterTokens = 2): void {
    this.#armed.push({ kind, afterTokens });
  }

  /** Called once per generation request, in order of arrival. */
  draw(): Fault | null {
    const armed = this.#armed.shift();
    if (armed !== undefined) return armed;
    let left = this.#random();
    for (const kind of FAULT_KINDS) {
      left -= this.#rates[kind] ?? 0;
      if (left < 0) return { kind, afterTokens: 1 + Math.floor(this.#random() * AFTER_TOKENS_MAX) };
    }
    return null;
  }

  /** To be called at the moment a fault takes place. */
  record(kind: FaultKind): void {
    this.fired[kind]++;
  }
}
