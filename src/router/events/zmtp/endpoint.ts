/**
 * Addresses of ZeroMQ sockets as engines name them (R4), into what node:net takes: `tcp://host:port` with a name, an IPv4
 * address or an IPv6 address in brackets, and `ipc://path`. Refused are `inproc://`, which reaches no other process, and
 * `ipc://@name`: Node 20 gives Linux's abstract names another length than libzmq, so that the two never meet. Pure, any
 * thread.
 */
import { ConfigError } from '../../../errors.js';

/** Where to connect to or listen; `host` undefined: all addresses of this machine. */
export type NetAddress =
  | { readonly host: string | undefined; readonly port: number }
  | { readonly path: string };

const TCP = /^tcp:\/\/(?:\[([\da-fA-F:.]+(?:%[\w.-]+)?)\]|([\w.-]+)|\*):(\d{1,5})$/;
const IPC = /^ipc:\/\/([^\s@]\S*)$/;
const PORT_MAX = 65_535;

/**
 * Reads an endpoint; `*` as host is for listening only. Throws ConfigError that names the field unless it is one.
 */
export function readEndpoint(field: string, endpoint: string, isListening = false): NetAddress {
  const tcp = TCP.exec(endpoint);
  const host = tcp?.[1] ?? tcp?.[2];
  const port = Number(tcp?.[3] ?? 0);
  if (port >= 1 && port <= PORT_MAX && (isListening || host !== undefined)) return { host, port };
  const ipc = IPC.exec(endpoint);
  if (ipc !== null) return { path: ipc[1]! };
  throw new ConfigError(
    `${field}: '${endpoint}' is no event endpoint (tcp://host:port with a port from 1 to ${PORT_MAX}, or ipc://path${
      isListening ? '' : '; * as host is for bind: only'
    })`,
  );
}
