/**
 * The client library `verbatim/client`: for browsers and Node, without a dependency. What is exported here is all there is;
 * other files are not for importing.
 */
export {
  type AttachInput,
  type BranchInput,
  type Client,
  type ClientOptions,
  createClient,
  type EditInput,
  type ExportFormat,
  type SendInput,
  type WithSignal,
} from './client.ts'
export { ConnectionError, GatewayError, passes } from './errors.ts'
export { textOf } from './fold.ts'
export { randomKey } from './random.ts'
export type { Accepted, ConnectionEvent, ReadyEvent, Reply, ReplyEvent, RunEvent } from './reply.ts'
export { createResumingFetch, type ResumingFetchOptions } from './resuming-fetch.ts'
export type { RequestOptions } from './transport.ts'
export type * from './types.ts'
export { type ClientLimits, pause } from './waiting.ts'
