/**
 * The encoder of a tokenizer.json (R3, pool thread; also the thread that compares ids with the workers). The npm package
 * `tokenizers` (Rust, answers by promise from libuv's pool) where it loads, else `@huggingface/tokenizers` (JavaScript,
 * answers at once); both give the same ids. One per thread and model.
 *
 * Special tokens that a text spells are encoded as such, also those that a user wrote, because the engine does the same
 * to the text that it renders from the same template: other ids would miss its cache and mean something else to it.
 */

/** Which library makes the ids. */
export type EncoderKind = 'native' | 'javascript';

/** Text to ids of one model. */
export interface IdEncoder {
  readonly kind: EncoderKind;
  /** Id that the library gives to a token, or null when it has none of that text. */
  idOf(token: string): number | null;
  /** With `addSpecialTokens` the model's own frame around a text, such as its begin-of-sequence token, is added. */
  encode(text: string, addSpecialTokens: boolean): Uint32Array | Promise<Uint32Array>;
}

/** The part of `tokenizers` that is used; the package is optional, so its types may be absent. */
interface NativeModule {
  readonly Tokenizer: {
    fromString(json: string): {
      disableTruncation(): void;
      disablePadding(): void;
      tokenToId(token: string): number | null;
      encode(
        text: string,
        pair: null,
        options: { addSpecialTokens: boolean },
      ): Promise<{ getIds(): number[] }>;
    };
  };
}

/** Not a literal in `import`, so that the build does not need the optional package. */
const NATIVE_PACKAGE: string = 'tokenizers';

let native: Promise<NativeModule | null> | null = null;

function loadNative(): Promise<NativeModule | null> {
  native ??= import(NATIVE_PACKAGE).then(
    (module: { default?: NativeModule } & NativeModule) => module.default ?? module,
    // No binary for this platform: the other library serves, and the start line says which one does.
    () => null,
  );
  return native;
}

async function createJavaScriptEncoder(json: string, config: object): Promise<IdEncoder> {
  const { Tokenizer } = await import('@huggingface/tokenizers');
  const tokenizer = new Tokenizer(JSON.parse(json) as object, config);
  return {
    kind: 'javascript',
    idOf: token => tokenizer.token_to_id(token) ?? null,
    encode: (text, addSpecialTokens) =>
      Uint32Array.from(tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids),
  };
}

/**
 * Builds the encoder of `json` (the text of tokenizer.json); `config` is tokenizer_config.json. Rejects with the
 * library's error for a file that it does not understand.
 * @param kind the library to use; left out, the native one where it loads
 */
export async function createIdEncoder(json: string, config: object, kind?: EncoderKind): Promise<IdEncoder> {
  const module = kind === 'javascript' ? null : await loadNative();
  if (module === null) {
    if (kind === 'native') throw new Error('the package tokenizers does not load on this platform');
    return createJavaScriptEncoder(json, config);
  }
  const tokenizer = module.Tokenizer.fromString(json);
  // Engines count and refuse long prompts themselves; neither of these belongs to a served model.
  tokenizer.disableTruncation();
  tokenizer.disablePadding();
  return {
    kind: 'native',
    idOf: token => tokenizer.tokenToId(token),
    encode: async (text, addSpecialTokens) =>
      Uint32Array.from((await tokenizer.encode(text, null, { addSpecialTokens })).getIds()),
  };
}
