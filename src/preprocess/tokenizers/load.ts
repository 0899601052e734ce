/** The tokenizers that Millrace holds, by the name that a model's configuration gives (R3). Each thread loads its own. */
import { ConfigError } from '../../errors.js';
import type { Tokenizer } from './tokenizer.js';

const LOADERS = {
  'chatml-cl100k': async () => (await import('./chatml-cl100k.js')).createChatmlCl100k(),
} satisfies Record<string, () => Promise<Tokenizer>>;

/** Every name that `loadTokenizer` takes. */
export const TOKENIZER_NAMES: readonly string[] = Object.keys(LOADERS);

/** Builds the tokenizer of that name, or throws a ConfigError that lists the valid names. */
export async function loadTokenizer(name: string): Promise<Tokenizer> {
  if (!Object.hasOwn(LOADERS, name)) {
    throw new ConfigError(`tokenizer: "${name}" is unknown; use one of: ${TOKENIZER_NAMES.join(', ')}`);
  }
  return LOADERS[name as keyof typeof LOADERS]();
}
