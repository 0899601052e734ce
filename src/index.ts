/** The public surface of the package: an embedded data plane, its handlers and calls, types of all bodies, errors. */

export type { ModelConfig } from './config.js';
export type {
  AbortCall,
  CanaryCall,
  EncodedCall,
  EncodeInput,
  EngineAdapter,
  EngineLoad,
  EngineStream,
  Fetcher,
  FrameBatch,
  Poster,
  RankEvents,
  StreamFault,
  TokenizeSample,
  WorkerCapabilities,
} from './engines/contract.js';
export type {
  AdapterTools,
  AnswerTranslator,
  EngineAdapterFactory,
  ExtensionAdapter,
} from './engines/extensions.js';
export type { StreamLimits } from './engines/stream-decoder.js';
export type { ErrorCode, ErrorEnvelope } from './errors.js';
export {
  ConfigError,
  EvictedError,
  InvalidRequestError,
  MillraceError,
  RejectedError,
  WorkerError,
} from './errors.js';
export type {
  ChatCompletion,
  ChatCompletionChunk,
  ChatCompletionRequest,
  ChatMessageBody,
  Completion,
  CompletionRequest,
  ContentPart,
  ModelBody,
  ModelListBody,
  UsageBody,
} from './frontend/openai/bodies.js';
export type { LimitName, Limits } from './limits.js';
export type { Delta, FinishReason, Usage } from './messages/delta.js';
export type { AnswerMode, WorkerModel } from './messages/records.js';
export type {
  Api,
  ChatMessage,
  Output,
  Prompt,
  Sampling,
  Stop,
  TokenRequest,
} from './messages/token-request.js';
export type { Decision } from './plane/decision-log.js';
export {
  createDataPlane,
  type DataPlane,
  type DataPlaneOptions,
  type ModelOptions,
} from './plane/embed/data-plane.js';
export type { GenerateRequest, PickOptions } from './plane/embed/generate-request.js';
export type { FastifyPlugin, NodeHandler } from './plane/embed/node-handler.js';
export type { PickedWorker, Reservation } from './plane/pick-request.js';
export type { Health } from './plane/routes.js';
export type { Clock, Timer } from './runtime/clock.js';
export type { LogFields, Logger, LogLevel } from './runtime/logger.js';
export { type MockWorker, type MockWorkerOptions, mockWorker } from './simulate/mock-worker.js';
export type { WorkerConfig, WorkerOptions } from './worker-config.js';
