/** Turns what happens to requests into metrics: the one place where the two vocabularies meet. Socket thread. */
import type { WorkerRegistry } from '../discovery/registry.js';
import type { EndpointLabel, MetricSources, Metrics } from '../frontend/metrics.js';
import type { AskReason, Plan, Reject } from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import type { LoadTable } from '../router/load-table.js';
import type { RequestEnd, RequestObserver } from './request-context.js';
import { workerName } from './routing-hints.js';
import type { SocketThread } from './socket-thread.js';

const ENDPOINTS: Readonly<Record<Api, EndpointLabel>> = {
  chat: 'chat_completions',
  completions: 'completions',
};
/** Model label of a request that was refused before its model was known. */
const NO_MODEL = '';

/** What the socket thread tells beyond a single request's events. */
export interface PlaneObserver extends RequestObserver {
  accepted(): void;
  asked(reason: AskReason): void;
  /** A PLAN is carried out. */
  placed(plan: Plan): void;
  rejected(reject: Reject): void;
  ended(end: RequestEnd): void;
}

/** Makes the observer that counts into `metrics`. */
export function createObserver(metrics: Metrics): PlaneObserver {
  const { disagg } = metrics;
  return {
    accepted: () => metrics.requestAccepted(),
    asked: reason => metrics.asked(reason),
    placed: ({ calls, placement }) => {
      disagg.routedBy(placement.ids);
      for (const { protocol, split } of calls)
        if (split !== null) disagg.decided(protocol === null ? 'local' : 'split', split);
    },
    rejected: ({ split }) => {
      if (split !== null) disagg.decided('refused', split);
    },
    handovers: {
      prefillAnswered: (model, ms) => disagg.prefillAnswered(metrics.modelIndex(model), ms / 1000),
      handedOver: (model, ms) => disagg.handedOver(metrics.modelIndex(model), ms / 1000),
      ended: (protocol, outcome) => disagg.handoverEnded(protocol, outcome),
      fellBack: cause => disagg.fellBack(cause),
    },
    migrated: (cause, outcome) => metrics.migrated(cause, outcome),
    hedged: outcome => metrics.hedged(outcome),
    planned: plan =>
      metrics.requestStarted(plan.model, ENDPOINTS[plan.api], plan.stream ? 'stream' : 'unary'),
    firstToken: (plan, sinceStartMs) => metrics.firstToken(plan.model, sinceStartMs / 1000),
    tokens: (plan, count, gapMs) =>
      metrics.tokens(metrics.modelIndex(plan.model), count, gapMs === null ? -1 : gapMs / 1000),
    ended({ plan, api, cause, code, usage, durationMs }) {
      const model = plan?.model ?? NO_MODEL;
      const endpoint = ENDPOINTS[api];
      const type = plan?.stream === true ? 'stream' : 'unary';
      // Counted as started only now: it was refused before it was known for what model it is.
      if (plan === null) metrics.requestStarted(model, endpoint, type);
      metrics.requestEnded({
        model,
        endpoint,
        type,
        cause,
        code: cause === 'client_gone' ? 'MILLRACE_CANCELED' : code,
        seconds: durationMs / 1000,
        promptTokens: usage?.promptTokens ?? null,
        cachedTokens: usage?.cachedTokens ?? null,
        expectedCachedTokens: plan?.placement.cachedTokens ?? null,
        completionTokens: usage?.completionTokens ?? null,
      });
    },
  };
}

/** What the metrics of a socket thread read when they are asked for. */
export function metricSources(
  socket: () => SocketThread,
  readWorkerLoads: MetricSources['readWorkerLoads'],
): Omit<MetricSources, 'readIngest' | 'readLinks' | 'readWorkers'> {
  return {
    readRetainedBytes: () => socket().retainedBytes,
    readDeferredAborts: () => socket().deferredAborts.counts,
    readRingDepths: () =>
      socket()
        .link.depths()
        .flatMap(({ ring, bytes, messages }) => [
          { ring, unit: 'bytes' as const, depth: bytes },
          { ring, unit: 'records' as const, depth: messages },
        ]),
    readWorkerLoads,
  };
}

/** The same of a thread without sockets. */
export const NO_SOCKET: Omit<ReturnType<typeof metricSources>, 'readWorkerLoads'> = {
  readRetainedBytes: () => 0,
  readDeferredAborts: () => ({ open: 0, deferred: 0, cut: 0 }),
  readRingDepths: () => [],
};

/** What the workers carry. One thread's metrics tell it. */
export function workerLoads(
  registry: WorkerRegistry,
  loadTable: LoadTable,
): MetricSources['readWorkerLoads'] {
  return () =>
    registry.list().flatMap(({ slot, url, rank }) => {
      const load = loadTable.snapshot(slot);
      if (load === null) return [];
      const worker = workerName(url, rank);
      return [
        { worker, kind: 'requests' as const, load: load.requests },
        { worker, kind: 'prefill_tokens' as const, load: load.activePrefillTokens },
        { worker, kind: 'decode_blocks' as const, load: load.decodeBlocks },
      ];
    });
}
