/** What the log says, once per kind and holder, of an anomaly in KV events: what it means and what to do (R4). */
import type { SinkCounter } from './contract.js';

/** Counters that stand for an anomaly. */
export type Anomaly = Exclude<
  SinkCounter,
  'batches' | 'events' | 'storedBlocks' | 'removedBlocks' | 'clears'
>;

/** The log line of each anomaly. */
export const ANOMALY_TEXT: Readonly<Record<Anomaly, string>> = {
  malformed:
    'a batch of KV events is not in the form of vLLM or SGLang; the worker counts as empty. Check that its event endpoint is right and its engine version supported',
  oversized:
    'a batch of KV events is over a limit; the worker counts as empty. Lower the number of tokens that its engine takes per step, or raise its page size to 16 or more',
  blockSizeMismatch:
    'KV events have another block size than the worker and are ignored. Set the block size of the worker to that of its engine (--block-size, --page-size)',
  tokenCountMismatch:
    'KV events whose token ids do not fill their blocks are ignored. Check that the engine version is supported',
  orphans:
    'KV events continue a block that is not known and are ignored. Normal for a while after joining a running engine; if it goes on, configure its replay endpoint',
  selfParent:
    'KV events that name a block twice are ignored. Report it to the makers of the engine, with its version',
  otherGroup:
    'KV events of groups other than full attention are ignored. Nothing to do: prefixes are matched by full attention',
  unknownTier:
    'KV events of a medium other than GPU, CPU and DISK are ignored. Nothing to do, unless that cache is local to the worker',
  unnamedAdapter:
    'KV events that name their LoRA adapter only by a number are ignored. Use an engine version whose events have lora_name',
  unknownEvent: 'KV events of an unknown kind are ignored. Check that the engine version is supported',
};
