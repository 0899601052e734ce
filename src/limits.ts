/**
 * Every limit and deadline of Millrace: its unit, the range it may be set to, its default and what it guards.
 * `config.ts` validates against this table and `--help` prints it; nothing else holds a magic bound.
 */

/**
 * One limit: its unit, its allowed range (both ends included), its default and what it guards, in words for
 * `--help`.
 */
export interface Limit {
  readonly unit: 'bytes' | 'count' | 'ms' | 'percent' | 'tokens';
  readonly min: number;
  readonly max: number;
  readonly default: number;
  readonly guards: string;
}

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;
const HOUR_MS = 3_600_000;

const limit = (unit: Limit['unit'], min: number, max: number, value: number, guards: string): Limit => ({
  unit,
  min,
  max,
  default: value,
  guards,
});

/** The table of all limits. */
export const LIMITS = {
  bodyBytesMax: limit('bytes', KIB, 256 * MIB, 4 * MIB, 'one request body (413 above)'),
  headerBytesMax: limit('bytes', KIB, 64 * KIB, 16 * KIB, 'the request line and headers (431 above)'),
  jsonDepthMax: limit('count', 4, 512, 64, 'nesting of a request body'),
  messagesMax: limit('count', 1, 1_000_000, 10_000, 'messages of a chat request'),
  choicesMax: limit('count', 1, 128, 128, '`n`, the choices of a request'),
  stopStringsMax: limit('count', 1, 64, 16, 'strings in `stop`'),
  stopStringBytesMax: limit('bytes', 1, 4 * KIB, 256, 'one stop string'),
  requestsMax: limit('count', 1, 1_000_000, 4096, 'requests in flight (529 above)'),
  retainedBytesMax: limit('bytes', MIB, 64 * GIB, 512 * MIB, 'bodies and ids kept for requests in flight'),
  ringBytes: limit(
    'bytes',
    64 * KIB,
    256 * MIB,
    MIB,
    'one ring between a socket and a pool thread; a power of two',
  ),
  ringQueueBytesMax: limit('bytes', MIB, GIB, 64 * MIB, 'messages waiting for room in one ring (529 above)'),
  ledgerEntries: limit('count', 64, 1_048_576, 16_384, 'reservations at one time'),
  linkGoneDeadlineMs: limit(
    'ms',
    0,
    HOUR_MS,
    60_000,
    'a worker that linked itself in and whose link is gone',
  ),
  workersMax: limit('count', 1, 4096, 1024, 'worker slots'),
  streamBufferBytesMax: limit('bytes', 4 * KIB, 64 * MIB, 256 * KIB, 'unsent bytes of one client stream'),
  sseFirstFrameBytesMax: limit('bytes', KIB, 64 * MIB, 4 * MIB, 'first frame of an engine stream'),
  sseFrameBytesMax: limit('bytes', KIB, 64 * MIB, 256 * KIB, 'later frames of an engine stream'),
  unaryAnswerBytesMax: limit('bytes', KIB, GIB, 64 * MIB, 'an engine answer that is passed on whole'),
  headerDeadlineMs: limit('ms', 100, HOUR_MS, 10_000, 'arrival of the request headers'),
  bodyDeadlineMs: limit('ms', 100, HOUR_MS, 60_000, 'arrival of the request body (408)'),
  firstTokenDeadlineMs: limit('ms', 10, HOUR_MS, 120_000, 'the first engine event (504)'),
  betweenTokensDeadlineMs: limit('ms', 10, HOUR_MS, 60_000, 'silence of a running engine stream (504)'),
  totalDeadlineMs: limit('ms', 10, 24 * HOUR_MS, 1_800_000, 'a whole request (504)'),
  slowClientDeadlineMs: limit('ms', 100, HOUR_MS, 8_000, 'a client that does not read'),
  keepAliveMs: limit(
    'ms',
    1000,
    HOUR_MS,
    10_000,
    'silence on a client stream before a comment frame is sent',
  ),
  connectDeadlineMs: limit('ms', 10, HOUR_MS, 2_000, 'a connection to a worker'),
  probeDeadlineMs: limit('ms', 10, HOUR_MS, 5_000, 'one probe or metrics scrape of a worker'),
  probeBytesMax: limit('bytes', KIB, 64 * MIB, 8 * MIB, 'the answer to one probe or metrics scrape'),
  probeFailuresMax: limit('count', 1, 100, 3, 'failed health probes in a row before a worker is unavailable'),
  probePeriodMs: limit('ms', 50, HOUR_MS, 2_000, 'time between health probes of a worker'),
  canaryAfterMs: limit(
    'ms',
    0,
    HOUR_MS,
    2_500,
    'time without a token of a worker before it is sent a canary request; 0: never',
  ),
  canaryDeadlineMs: limit('ms', 10, HOUR_MS, 2_000, 'the one token of a canary request'),
  controlDeadlineMs: limit(
    'ms',
    100,
    HOUR_MS,
    120_000,
    'one call that loads or unloads an adapter, or puts an engine to sleep or wakes it',
  ),
  scrapePeriodMs: limit('ms', 50, HOUR_MS, 1_000, 'time between metrics scrapes of a worker'),
  pickExpiryMs: limit('ms', 100, HOUR_MS, 60_000, 'a reservation of pick() that nobody releases'),
  drainDeadlineMs: limit('ms', 0, HOUR_MS, 30_000, 'open requests after SIGTERM'),
  askDeadlineMs: limit('ms', 100, HOUR_MS, 30_000, 'an answer from the pool'),
  prefillDeadlineMs: limit(
    'ms',
    100,
    HOUR_MS,
    60_000,
    'the answer of a prefill worker, before decode does it all',
  ),
  prefillAnswerBytesMax: limit('bytes', KIB, 256 * MIB, 8 * MIB, 'the answer of a prefill worker'),
  deferredAbortsMax: limit(
    'count',
    0,
    1_000_000,
    256,
    'hand-overs of KV that are finished for a client that is gone; above, they are cut',
  ),
  attemptsMax: limit('count', 1, 16, 3, 'asks of one request: the first one and its retries'),
  migrationsMax: limit('count', 0, 16, 3, 'times that an answer goes on at another worker; 0: never'),
  migrateTokensMax: limit(
    'tokens',
    0,
    16 * 1024 * 1024,
    1_000_000,
    'prompt and answer that are kept for going on at another worker',
  ),
  breakerFailuresMax: limit(
    'count',
    1,
    1000,
    5,
    'failures of a worker in `breakerWindowMs` before it is avoided',
  ),
  breakerWindowMs: limit(
    'ms',
    100,
    HOUR_MS,
    10_000,
    'time in which failures of a worker are counted together',
  ),
  breakerOpenMs: limit('ms', 10, HOUR_MS, 5_000, 'time for which a worker that fails is avoided'),
  hedgeAfterMs: limit(
    'ms',
    0,
    HOUR_MS,
    0,
    'time without a first token after which a second worker is asked too; 0: never',
  ),
  hedgePercentMax: limit('percent', 1, 100, 5, 'requests in flight that run on two workers, rounded up'),
  poolHeapBytesMax: limit('bytes', 64 * MIB, 64 * GIB, GIB, 'JavaScript heap of one pool thread'),
  poolRestartsMax: limit('count', 1, 100, 5, 'restarts of a pool thread in 10 s before its slot is off'),
  jsonKeysMax: limit('count', 16, 1_000_000, 1000, 'keys of one object in a request body'),
  indexBytes: limit('bytes', MIB, GIB, 256 * MIB, 'the prefix index: blocks, engine hashes and predictions'),
  indexPredictionsMax: limit('count', 64, 1_048_576, 65_536, 'blocks in the index that are only expected'),
  eventBatchBytesMax: limit('bytes', KIB, 256 * MIB, 16 * MIB, 'one batch of KV events'),
  eventQueueBytesMax: limit('bytes', MIB, GIB, 64 * MIB, 'batches of one rank that wait for a replay'),
  eventQueueMax: limit(
    'count',
    16,
    1_000_000,
    16_384,
    'batches of one rank in a replay, or that wait for its end',
  ),
  eventPollPeriodMs: limit(
    'ms',
    10,
    HOUR_MS,
    100,
    'time to the next poll for KV events after one that brought none (TensorRT-LLM)',
  ),
  eventPollDeadlineMs: limit(
    'ms',
    100,
    HOUR_MS,
    10_000,
    'one poll for KV events; the server itself waits up to 2 s for one',
  ),
  eventPollBytesMax: limit('bytes', KIB, GIB, 64 * MIB, 'the answer to one poll for KV events'),
  replayBytesMax: limit('bytes', MIB, 16 * GIB, GIB, 'batches that one replay brings'),
  replayDeadlineMs: limit('ms', 10, HOUR_MS, 5_000, 'a replay of KV events; then the rank counts as empty'),
  approximateTtlMs: limit(
    'ms',
    100,
    24 * HOUR_MS,
    120_000,
    'a guess of what a worker without KV events holds',
  ),
  stopTokenIdsMax: limit('count', 1, 4096, 256, 'ids in `stop_token_ids` and in `stop` together'),
  tokenizeDeadlineMs: limit('ms', 1, 60_000, 250, 'prompt ids that a worker makes for routing by prefix'),
  tokenizeBytesMax: limit('bytes', 0, 16 * MIB, 256 * KIB, 'a body whose prompt ids a worker is asked for'),
  tokenizeCacheBytesMax: limit('bytes', 0, GIB, 32 * MIB, 'prompt ids of workers that a pool thread keeps'),
} as const satisfies Record<string, Limit>;

/** The name of a limit, as in the configuration. */
export type LimitName = keyof typeof LIMITS;
/** One number per limit, in the limit's unit. */
export type Limits = Readonly<Record<LimitName, number>>;

/** The defaults of every limit, as one frozen object. */
export const DEFAULT_LIMITS: Limits = Object.freeze(
  Object.fromEntries(Object.entries(LIMITS).map(([name, entry]) => [name, entry.default])) as Record<
    LimitName,
    number
  >,
);
