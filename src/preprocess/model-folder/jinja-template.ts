/**
 * The chat template of a model folder (R3, pool thread): messages → the text of a prompt, by the Jinja source that the
 * model came with, in the environment that transformers gives it (`trim_blocks`, `lstrip_blocks`, `raise_exception`,
 * `strftime_now`). Parsed once; a probe at that time finds unknown filters and tests, and whether message contents are
 * to be strings or lists of parts. The clock comes from outside; everything else is pure.
 */
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';
import { InvalidRequestError } from '../../errors.js';
import type { ChatMessage } from '../../messages/token-request.js';
import type { Clock } from '../../runtime/clock.js';
import { strftime } from './strftime.js';

/** Longest reason of a template that a client is shown, in UTF-16 units. */
const REASON_UNITS_MAX = 300;
/** Most elements that `range()` makes. */
const RANGE_MAX = 1_000_000;
/** Text of the probes: no template writes it by itself. */
const PROBE = 'millrace-probe';

type Program = ReturnType<typeof parse>;

/** The templates of a model by their use; most have one. */
export interface TemplateSources {
  readonly default: string;
  /** Used instead when a request has tools. */
  readonly toolUse: string | null;
}

/** What a template is made from. */
export interface ChatTemplateOptions {
  readonly sources: TemplateSources;
  /** Names that the template may use beside the messages: `bos_token`, `eos_token` and the like. */
  readonly variables: Readonly<Record<string, string>>;
  readonly clock: Pick<Clock, 'wallMs'>;
}

/** What to render beside the messages. */
export interface RenderOptions {
  /** Tool definitions in OpenAI's form. */
  readonly tools?: readonly unknown[];
  /** Ends the prompt where the assistant's answer begins. Default true. */
  readonly addGenerationPrompt?: boolean;
}

/** The template itself said no: `raise_exception`. */
class Refusal extends Error {}

function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop];
  const count = step === 0 ? Number.NaN : Math.max(0, Math.ceil((to - from) / step));
  if (!(count <= RANGE_MAX)) throw new Error(`range() makes at most ${RANGE_MAX} elements`);
  return Array.from({ length: count }, (_, index) => from + index * step);
}

function environmentOf(options: ChatTemplateOptions): Environment {
  const environment = new Environment();
  const globals: Record<string, unknown> = {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range,
    raise_exception: (reason: unknown) => {
      throw new Refusal(String(reason));
    },
    strftime_now: (format: unknown) => strftime(String(format), options.clock.wallMs()),
    ...options.variables,
  };
  for (const [name, value] of Object.entries(globals)) environment.set(name, value);
  return environment;
}

/** What a filter is tried on to learn whether the interpreter has it for any type. */
const FILTER_OPERANDS = ['"a"', '1', 'true', '{"a": 1}', '[1]', 'none', 'missing'];
const UNKNOWN_FILTER = /^(Unknown|Cannot apply) /;

function run(source: string): string | null {
  try {
    new Interpreter(new Environment()).run(parse(tokenize(source)));
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

const isKnownFilter = (name: string): boolean =>
  ['', '()'].some(call =>
    FILTER_OPERANDS.some(operand => {
      const fault = run(`{{ ${operand} | ${name}${call} }}`);
      return fault === null || !UNKNOWN_FILTER.test(fault);
    }),
  );

interface SyntaxNode {
  readonly type: string;
  readonly value?: unknown;
  readonly callee?: SyntaxNode;
  readonly filter?: SyntaxNode;
  readonly test?: SyntaxNode;
}

/** Calls `see` with every node below `value`. */
function walk(value: unknown, see: (node: SyntaxNode) => void): void {
  if (typeof value !== 'object' || value === null) return;
  if (value instanceof Map) {
    for (const entry of value) walk(entry, see);
    return;
  }
  if (!Array.isArray(value) && 'type' in value) see(value as SyntaxNode);
  for (const child of Object.values(value)) walk(child, see);
}

/** Throws Error naming a filter or test that the interpreter does not have: a request must not be the first to find it. */
function checkNames(program: Program): void {
  const filters = new Set<string>();
  const tests = new Set<string>();
  walk(program, node => {
    if (node.type === 'FilterExpression' || node.type === 'FilterStatement') {
      const name = node.filter!.type === 'CallExpression' ? node.filter!.callee! : node.filter!;
      filters.add(String(name.value));
    } else if (node.type === 'TestExpression') {
      tests.add(String(node.test!.value));
    }
  });
  for (const name of filters)
    if (!isKnownFilter(name)) throw new Error(`it uses the unknown filter "${name}"`);
  const known = new Environment().tests;
  for (const name of tests) if (!known.has(name)) throw new Error(`it uses the unknown test "${name}"`);
}

function compile(source: string): Program {
  const program = parse(tokenize(source, { trim_blocks: true, lstrip_blocks: true }));
  checkNames(program);
  return program;
}

/** The chat template of one model, on one thread. */
export class ChatTemplate {
  readonly #options: ChatTemplateOptions;
  readonly #program: Program;
  readonly #toolProgram: Program | null;
  /** Contents are handed over as lists of text parts, as engines do for templates that iterate over them. */
  readonly takesParts: boolean;

  /** Throws Error, for the person who runs the server, when the template cannot be used at all. */
  constructor(options: ChatTemplateOptions) {
    this.#options = options;
    this.#program = compile(options.sources.default);
    const { toolUse } = options.sources;
    this.#toolProgram = toolUse === null ? null : compile(toolUse);
    const asParts = this.#probe([{ type: 'text', text: PROBE }]);
    // A template that prints the list itself shows its keys.
    this.takesParts = asParts.text?.includes(PROBE) === true && !/['"]type['"]/.test(asParts.text);
    if (this.takesParts) return;
    const asText = this.#probe(PROBE);
    if (asText.text?.includes(PROBE) !== true) {
      throw new Error(`it cannot render one user message: ${asText.fault ?? 'the content is left out'}`);
    }
  }

  /** The text of the prompt. Throws InvalidRequestError with the template's reason when it does not take the messages. */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    try {
      return this.#run(
        messages.map(message => ({
          role: message.role,
          content: this.takesParts ? partsOf(message) : message.text,
          ...(message.name === undefined ? {} : { name: message.name }),
        })),
        options,
      );
    } catch (error) {
      const reason = (error as Error).message.slice(0, REASON_UNITS_MAX);
      const verb = error instanceof Refusal ? 'refuses' : 'cannot render';
      throw new InvalidRequestError(
        'MILLRACE_INVALID_REQUEST',
        `the model's chat template ${verb} these messages: ${reason}`,
        { param: 'messages', cause: error },
      );
    }
  }

  /**
   * What the template writes directly after an assistant's message: where one of `tokens` begins it, that is the token
   * that ends a turn. Null when it does not say.
   */
  endOfTurn(tokens: readonly string[]): string | null {
    const turn = [
      { role: 'user', text: 'a', hasMedia: false },
      { role: 'assistant', text: PROBE, hasMedia: false },
    ];
    let text: string;
    try {
      text = this.render(turn, { addGenerationPrompt: false });
    } catch {
      return null;
    }
    const at = text.lastIndexOf(PROBE);
    if (at === -1) return null;
    const after = text.slice(at + PROBE.length);
    const found = tokens.filter(token => token !== '' && after.startsWith(token));
    return found.sort((a, b) => b.length - a.length)[0] ?? null;
  }

  #run(messages: readonly unknown[], { tools, addGenerationPrompt = true }: RenderOptions): string {
    const environment = environmentOf(this.#options);
    const hasTools = tools !== undefined && tools.length > 0;
    environment.set('messages', messages);
    if (hasTools) environment.set('tools', tools);
    environment.set('add_generation_prompt', addGenerationPrompt);
    const program = hasTools && this.#toolProgram !== null ? this.#toolProgram : this.#program;
    return String(new Interpreter(environment).run(program).value);
  }

  #probe(content: unknown): { text?: string; fault?: string } {
    try {
      return { text: this.#run([{ role: 'user', content }], {}) };
    } catch (error) {
      return { fault: (error as Error).message };
    }
  }
}

function partsOf(message: ChatMessage): { type: 'text'; text: string }[] {
  return (message.textParts ?? [message.text]).map(text => ({ type: 'text', text }));
}
