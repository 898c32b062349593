/**
 * Agents at work: the registry, and what becomes of the things that only an agent says. Its words, tool calls and sources
 * are the draft's, like those of a model; its artifacts and titles are written to the session here, its progress is told
 * to viewers and kept with the run.
 *
 * An agent is somebody else's code: its text is made fit for the database, what it says is bounded as a model's is, and a
 * generator that does not follow the signal is left behind where it stands. An artifact is stored before viewers are told
 * of it; if the process dies between the two, the document is there and nobody was told, and the next look finds it.
 */
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { cleanText } from '../http/text.ts'
import { ArtifactType, artifactNamePattern, encodeBody, jsonType } from '../sessions/artifact-model.ts'
import type { ArtifactStore } from '../sessions/artifacts.ts'
import type { SessionChanges } from '../sessions/changes.ts'
import { titleUnitsMax } from '../sessions/model.ts'
import type { Agent, AgentEvent } from '../upstream/agent.ts'
import { replyUnitsMax } from '../upstream/reader.ts'

export interface Agents {
  /** @throws Problem `invalid_request` */
  get(id: string): Agent
  /** Those that have something to close. */
  close(): Promise<void>
}

/** @throws Error when an agent cannot be registered */
export function createAgents(registered: readonly Agent[]): Agents {
  const agents = new Map<string, Agent>()
  for (const agent of registered) {
    if (!/^[A-Za-z0-9._:-]{1,64}$/.test(agent.id))
      throw new Error(`An agent's id must be 1 to 64 of A-Z a-z 0-9 . _ : - (${agent.id})`)
    if (agents.has(agent.id)) throw new Error(`There are two agents with the id ${agent.id}`)
    agents.set(agent.id, agent)
  }
  return {
    get(id) {
      const agent = agents.get(id)
      if (agent === undefined) throw new Problem('invalid_request', 'agent_id names no agent of this server.')
      return agent
    },
    async close() {
      // One that fails at it must not keep the others, and then the stores, open.
      await Promise.allSettled([...agents.values()].map((agent) => agent.close?.()))
    },
  }
}

/** What an agent's run has to do with the database. */
export interface AgentDesk {
  /** `metadata` of a message. @throws Problem `db_unavailable` */
  readMetadata(messageId: string): Promise<Readonly<Record<string, unknown>>>
  /** @returns its version. @throws Problem `invalid_request` `too_large` `not_found` `rate_limited` `db_unavailable` */
  putArtifact(sessionId: string, artifact: Extract<AgentEvent, { type: 'artifact' }>): Promise<number>
  /** A title that a person gave stays. @returns whether the session has the new one */
  setTitle(sessionId: string, title: string): Promise<boolean>
}

const nameShape = new RegExp(artifactNamePattern)

export function createAgentDesk(db: Db, artifacts: ArtifactStore, changes: SessionChanges): AgentDesk {
  async function readOwner(sessionId: string): Promise<Owner> {
    // Each time: a visitor may have become a user while the run went on.
    const [row] = await db.rows<{ user_id: string | null; visitor_hash: string | null; owner: string }>(sql`
      select user_id, visitor_hash, owner from chat_sessions where id = ${sessionId}::uuid and deleted_at is null`)
    if (row === undefined) throw new Problem('not_found')
    const { user_id: userId, visitor_hash: visitorHash, owner: key } = row
    return { kind: userId === null ? 'visitor' : 'user', key, userId, visitorHash } as Owner
  }

  return {
    async readMetadata(messageId) {
      const [row] = await db.rows<{ metadata: Record<string, unknown> }>(sql`
        select metadata from chat_messages where id = ${messageId}::uuid`)
      return row?.metadata ?? {}
    },
    async putArtifact(sessionId, { name, contentType, body }) {
      if (!nameShape.test(name)) throw new Problem('invalid_request', 'The agent gave an artifact no valid name.')
      const type = ArtifactType.anyOf.find((literal) => literal.const === contentType)?.const
      if (type === undefined) {
        throw new Problem('invalid_request', 'The agent gave an artifact no valid content type.')
      }
      const content = encodeBody(type, type === jsonType ? parseBody(body) : body)
      return (await artifacts.putArtifact(await readOwner(sessionId), sessionId, name, content, {})).version
    },
    async setTitle(sessionId, title) {
      const named = await db.rows(sql`
        update chat_sessions
        set title = ${title}, title_source = 'model', version = version + 1, updated_at = now()
        where id = ${sessionId}::uuid and title_source is distinct from 'client' and deleted_at is null
        returning id`)
      if (named.length > 0) changes.changed(sessionId)
      return named.length > 0
    },
  }
}

function parseBody(body: string): unknown {
  try {
    return JSON.parse(body)
  } catch {
    throw new Problem('invalid_request', 'The agent gave an artifact of JSON that is none.')
  }
}

/** A title as it can be stored; undefined when nothing is left of it. */
export function cleanTitle(title: string): string | undefined {
  const line = cleanText(title).replaceAll(/\s+/g, ' ').trim()
  return line === '' ? undefined : line.slice(0, titleUnitsMax).toWellFormed()
}

/** Of what an agent says of itself. */
const phaseUnitsMax = 64

/** Makes an agent's events fit for the log, and ends a reply that grows too large. */
export function createAgentFilter(): (event: AgentEvent) => AgentEvent {
  let units = 0
  const take = (text: string): string => {
    const clean = cleanText(text)
    units += clean.length
    if (units > replyUnitsMax) throw new Problem('too_large', `The reply grew beyond ${replyUnitsMax} characters.`)
    return clean
  }
  const clean = <T>(value: T): T => {
    const json = JSON.stringify(value)
    return json === undefined ? value : JSON.parse(take(json))
  }
  return (event) => {
    switch (event.type) {
      case 'text':
      case 'reasoning':
        return { ...event, text: take(event.text) }
      case 'progress':
        return event.phase === undefined ? event : { ...event, phase: cleanText(event.phase).slice(0, phaseUnitsMax) }
      case 'tool_call':
        return { ...event, arguments: take(event.arguments) }
      case 'tool_result':
      case 'source':
      case 'file':
      case 'signature':
        return clean(event)
      default:
        return event
    }
  }
}

/**
 * The values of `source`, unless the signal comes first: then its reason is thrown, and a source that does not end by
 * itself is left behind.
 */
export async function* untilAborted<T>(
  source: AsyncIterable<T>,
  signal: AbortSignal,
): AsyncGenerator<T, void, undefined> {
  const iterator = source[Symbol.asyncIterator]()
  let give: ((reason: unknown) => void) | undefined
  const onAbort = () => give?.(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    for (;;) {
      signal.throwIfAborted()
      // One promise for each event: a race with one that lives as long as the reply would hold on to all of them.
      const next = await new Promise<IteratorResult<T>>((resolve, reject) => {
        give = reject
        iterator.next().then(resolve, reject)
      })
      if (next.done === true) return
      yield next.value
    }
  } finally {
    signal.removeEventListener('abort', onAbort)
    // Not awaited: a generator that hangs in an await of its own would hold the run with it.
    iterator.return?.()?.then(undefined, () => undefined) // what it says to its end is heard by nobody
  }
}
