/** The adapters of all engines (R5), Millrace's own and those of extensions, one set for each thread that needs them. */
import { strict as assert } from 'node:assert';
import { ConfigError } from '../errors.js';
import type { EngineAdapter } from './contract.js';
import { createExtensionAdapter, type EngineExtension, openExtensionStream } from './extensions.js';
import { AUTO_ENGINE } from './health-contract.js';
import { createSglangAdapter } from './sglang.js';
import { openSseStream, type StreamScanner } from './stream-decoder.js';
import { createTrtllmAdapter } from './trtllm.js';
import { createVllmAdapter } from './vllm.js';

/**
 * Makes them, by the name of the engine. `extensions`: as this thread has loaded them. `scanner`: of this thread, where
 * streams are opened. Throws ConfigError where an extension is wrong or has the name of another engine.
 */
export function createAdapters(
  extensions: readonly EngineExtension[],
  scanner?: StreamScanner,
): ReadonlyMap<string, EngineAdapter> {
  const options = scanner === undefined ? {} : { scanner };
  const own = [createVllmAdapter(options), createSglangAdapter(options), createTrtllmAdapter(options)];
  const adapters = new Map(own.map(adapter => [adapter.engine, adapter]));
  const scannerHere = (): StreamScanner => {
    assert(scanner !== undefined, 'streams are opened on threads with a scanner');
    return scanner;
  };
  for (const extension of extensions) {
    const adapter = createExtensionAdapter(extension, {
      openSse: limits => openSseStream(scannerHere(), limits),
      openTranslated: (limits, translator) => openExtensionStream(scannerHere(), limits, translator),
    });
    if (adapters.has(adapter.engine)) {
      const names = [...adapters.keys()].join(', ');
      throw new ConfigError(
        `extensions: ${extension.module} is for the engine "${adapter.engine}", which there is already (${names})`,
      );
    }
    adapters.set(adapter.engine, adapter);
  }
  return adapters;
}

/** Throws ConfigError where a worker's configuration names an engine that none of them is for. */
export function checkEngines(
  adapters: ReadonlyMap<string, unknown>,
  workers: readonly { readonly url: string; readonly engine: string }[],
): void {
  for (const { url, engine } of workers) {
    if (engine === AUTO_ENGINE || adapters.has(engine)) continue;
    const names = [AUTO_ENGINE, ...adapters.keys()].join(', ');
    throw new ConfigError(
      `engine of worker ${url} is "${engine}"; allowed: ${names}; an extension can bring others`,
    );
  }
}
