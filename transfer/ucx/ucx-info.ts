/**
 * What UCX on this machine can do, for people: version, transports and devices, configuration. Reads libucp through koffi,
 * which is installed only where somebody wants this; the ucx transport itself (K3) is native and needs neither. Nothing of a
 * transfer runs here. Any thread that may block for some 100 ms; the library stays loaded after the first call.
 */
import { TransferError } from '../errors.js';

/** A way that UCX has from here. */
export interface UcxTransport {
  /** UCX's name: `tcp`, `posix`, `rc_mlx5`… */
  readonly name: string;
  /** `eth0`, `memory`, `mlx5_0:1`… */
  readonly device: string;
  /** Its device reads and writes the memory of another host itself. */
  readonly oneSided: boolean;
}

/** UCX as it is here. */
export interface UcxInfo {
  readonly available: boolean;
  /** Why it cannot be asked, with what to install; empty when it can. */
  readonly reason: string;
  /** `1.13.1`; null without it. */
  readonly version: string | null;
  readonly transports: readonly UcxTransport[];
  /** Whether one of them moves bytes between hosts without the other side's processor. */
  readonly oneSided: boolean;
  /** Settings of UCX by their variable, as they are in force. */
  readonly config: Readonly<Record<string, string>>;
}

type Koffi = typeof import('koffi');
/** A pointer of C, as koffi has it. */
type Pointer = unknown;

const API_MAJOR = 1;
const API_MINOR = 13;
/** Of `ucp_params_t`, whose first two words are read: the fields that are set, and the features wanted. */
const PARAMS_BYTES = 256;
const FIELD_FEATURES = 1n;
const FEATURES_RMA_AM = (1n << 1n) | (1n << 6n);
const PRINT_CONFIG = 1;
const TEXT_BYTES_MAX = 4_194_304;

/** UCX writes jumps into the memory functions of the process while it loads, unless its environment says not to. */
function loadWithoutHooks(koffi: Koffi, library: string) {
  const isSaid = process.env.UCX_MEM_EVENTS !== undefined;
  if (!isSaid) process.env.UCX_MEM_EVENTS = 'n';
  try {
    return koffi.load(library);
  } finally {
    if (!isSaid) delete process.env.UCX_MEM_EVENTS;
  }
}

/** Calls of libucp, libucs and libc that are used. Statuses are one signed byte. */
function bind(koffi: Koffi) {
  const ucp = loadWithoutHooks(koffi, 'libucp.so.0');
  const ucs = koffi.load('libucs.so.0');
  const libc = koffi.load('libc.so.6');
  return {
    version: ucp.func('const char *ucp_get_version_string()'),
    configRead: ucp.func('int8 ucp_config_read(const char *prefix, const char *file, _Out_ void **config)'),
    configPrint: ucp.func('void ucp_config_print(void *config, void *stream, const char *title, int flags)'),
    configRelease: ucp.func('void ucp_config_release(void *config)'),
    init: ucp.func(
      'int8 ucp_init_version(uint major, uint minor, void *params, void *config, _Out_ void **context)',
    ),
    contextPrint: ucp.func('void ucp_context_print_info(void *context, void *stream)'),
    cleanup: ucp.func('void ucp_cleanup(void *context)'),
    statusText: ucs.func('const char *ucs_status_string(int8 status)'),
    openStream: libc.func('void *open_memstream(void *text, void *bytes)'),
    closeStream: libc.func('int fclose(void *stream)'),
    free: libc.func('void free(void *memory)'),
  };
}
type Ucx = ReturnType<typeof bind>;

/** What `print` writes to a stream of C. */
function printed(koffi: Koffi, ucx: Ucx, print: (stream: Pointer) => void): string {
  const text = koffi.alloc('void *', 1);
  const bytes = koffi.alloc('size_t', 1);
  try {
    const stream = ucx.openStream(text, bytes);
    if (stream === null) throw new TransferError('SYSTEM', 'open_memstream failed');
    print(stream);
    ucx.closeStream(stream);
    const size = Math.min(Number(koffi.decode(bytes, 'size_t')), TEXT_BYTES_MAX);
    const memory = koffi.decode(text, 'void *');
    const said = Buffer.from(koffi.decode(memory, 'uint8_t', size) as Uint8Array).toString('utf8');
    ucx.free(memory);
    return said;
  } finally {
    koffi.free(text);
    koffi.free(bytes);
  }
}

function check(ucx: Ucx, call: string, status: number): void {
  if (status !== 0) throw new TransferError('SYSTEM', `${call}: ${ucx.statusText(status)}`);
}

/** Lines such as `#  resource 3  :  md 2  dev 1  flags -- tcp/eth0`. */
export function readTransports(said: string): UcxTransport[] {
  return [...said.matchAll(/\bresource\s+\d+\b.*?\s([a-z0-9_]+)\/(\S+)\s*$/gm)].map(([, name, device]) => ({
    name: name!,
    device: device!,
    oneSided: /^(rc|dc)_/.test(name!),
  }));
}

/** Lines such as `UCX_TLS=all`. */
export function readConfig(said: string): Record<string, string> {
  return Object.fromEntries(
    [...said.matchAll(/^(UCX_[A-Z0-9_]+)=(.*)$/gm)].map(line => [line[1]!, line[2]!]),
  );
}

function ask(koffi: Koffi): UcxInfo {
  const ucx = bind(koffi);
  const config: Pointer[] = [null];
  check(ucx, 'ucp_config_read', ucx.configRead(null, null, config));
  const settings = readConfig(
    printed(koffi, ucx, stream => ucx.configPrint(config[0], stream, '', PRINT_CONFIG)),
  );
  const params = Buffer.alloc(PARAMS_BYTES);
  params.writeBigUInt64LE(FIELD_FEATURES, 0);
  params.writeBigUInt64LE(FEATURES_RMA_AM, 8);
  const context: Pointer[] = [null];
  const status: number = ucx.init(API_MAJOR, API_MINOR, params, config[0], context);
  ucx.configRelease(config[0]);
  check(ucx, 'ucp_init', status);
  const transports = readTransports(printed(koffi, ucx, stream => ucx.contextPrint(context[0], stream)));
  ucx.cleanup(context[0]);
  return {
    available: true,
    reason: '',
    version: ucx.version(),
    transports,
    oneSided: transports.some(({ oneSided }) => oneSided),
    config: settings,
  };
}

/** An answer that says why there is none. */
function unavailable(reason: string): UcxInfo {
  return { available: false, reason, version: null, transports: [], oneSided: false, config: {} };
}

/**
 * Asks the UCX of this machine. What is missing is an answer and no error: `available` is false and `reason` says what to
 * install. UCX writes its own warnings to standard error.
 *
 * @param load Gives koffi; by default its package, which is an optional one.
 */
export async function ucxInfo(load: () => Promise<Koffi> = () => import('koffi')): Promise<UcxInfo> {
  let koffi: Koffi;
  try {
    koffi = await load();
  } catch {
    return unavailable('koffi is not installed, through which UCX is asked: npm install koffi');
  }
  // UCX reads it when it is loaded; else it would write to standard output, into the midst of an answer.
  process.env.UCX_LOG_FILE ??= 'stderr';
  try {
    return ask(koffi);
  } catch (error) {
    const words = error instanceof Error ? error.message : String(error);
    const isMissing = /libuc[ps]\.so/.test(words);
    return unavailable(
      isMissing ? `UCX is not installed (Debian: apt-get install -y libucx0): ${words}` : words,
    );
  }
}
