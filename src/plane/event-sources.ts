/**
 * What sources of KV events are given by the process that they run in (R4): their bounds out of its limits, and how servers
 * of TensorRT-LLM are polled: this is where router and engines meet. Used by the ingest thread and by worker links.
 */
import { EngineClient, type EngineClientOptions } from '../engines/client.js';
import { TrtllmEventTranslator } from '../engines/trtllm-event-translator.js';
import { parseTrtllmEvents } from '../engines/trtllm-events.js';
import type { Limits } from '../limits.js';
import type { PollConnection, PolledProtocol } from '../router/events/contract.js';
import type { SourceLimits } from '../router/events/ingest.js';

/** The bounds of every source. */
export function sourceLimits(limits: Limits): SourceLimits {
  return {
    replayDeadlineMs: limits.replayDeadlineMs,
    eventBytesMax: limits.eventBatchBytesMax,
    waitingBatchesMax: limits.eventQueueMax,
    waitingBytesMax: limits.eventQueueBytesMax,
    replayBatchesMax: limits.eventQueueMax,
    replayBytesMax: limits.replayBytesMax,
    eventPollPeriodMs: limits.eventPollPeriodMs,
    eventPollDeadlineMs: limits.eventPollDeadlineMs,
    eventPollBytesMax: limits.eventPollBytesMax,
  };
}

/** Polls the `/kv_cache_events` of TensorRT-LLM; each connection has a client of its own, so that it can be closed alone. */
export function trtllmPolling(options: EngineClientOptions): PolledProtocol {
  return {
    connect: url => openConnection(url, options),
    read: parseTrtllmEvents,
    createTranslator: blockSize => new TrtllmEventTranslator(blockSize),
  };
}

function openConnection(url: string, options: EngineClientOptions): PollConnection {
  const client = new EngineClient(options);
  const { origin, pathname: path } = new URL(url);
  // Without a body: the route takes none.
  const request = { origin, method: 'POST', path, head: [], body: new Uint8Array(0) };
  return {
    poll: (deadlineMs, bytesMax) => client.ask(request, deadlineMs, bytesMax),
    close: () => client.close(),
  };
}
