/**
 * The tables. What is true about rows is said here, in checks and indexes, so that no program version and no hand-made
 * statement can break it: one running reply per session, one run per idempotency key, one owner per session.
 * No address and no user agent is stored anywhere. Columns that a later capability fills are nullable or have defaults.
 */
import {
  bigint,
  boolean,
  check,
  date,
  index,
  integer,
  jsonb,
  numeric,
  pgTable,
  primaryKey,
  smallint,
  sql,
  text,
  timestamp,
  unique,
  uniqueIndex,
  uuid,
} from './drizzle.ts'

// Strings keep the microseconds that a JavaScript Date drops; a cursor made of Dates skips rows.
const time = (name: string) => timestamp(name, { withTimezone: true, mode: 'string' })

export const chatSessions = pgTable(
  'chat_sessions',
  {
    id: uuid('id').primaryKey(),
    externalId: text('external_id'),
    userId: text('user_id'),
    visitorHash: text('visitor_hash'),
    isAnonymous: boolean('is_anonymous').notNull().generatedAlwaysAs(sql`user_id is null`),
    owner: text('owner').generatedAlwaysAs(
      sql`case when user_id is not null then 'user:' || user_id else 'visitor:' || visitor_hash end`,
    ),
    kind: text('kind').notNull().default('chat'),
    status: text('status').notNull().default('created'),
    state: jsonb('state'),
    input: text('input'),
    context: jsonb('context'),
    title: text('title'),
    titleSource: text('title_source'),
    mode: text('mode').notNull().default('balanced'),
    model: text('model'),
    phase: text('phase'),
    roundNumber: integer('round_number'),
    messageCount: integer('message_count').notNull().default(0),
    totalTokens: bigint('total_tokens', { mode: 'number' }).notNull().default(0),
    totalCost: numeric('total_cost').notNull().default('0'),
    activeRunId: uuid('active_run_id'),
    /** What was said up to `summary_message_id`, for a model: what no longer fits into its window. */
    summary: text('summary'),
    summaryMessageId: uuid('summary_message_id'),
    /** While somebody makes a newer one. */
    summaryLeaseUntil: time('summary_lease_until'),
    tags: text('tags').array().notNull().default(sql`'{}'`),
    metadata: jsonb('metadata').notNull().default({}),
    version: integer('version').notNull().default(1),
    createdAt: time('created_at').notNull().defaultNow(),
    updatedAt: time('updated_at').notNull().defaultNow(),
    lastActivityAt: time('last_activity_at').notNull().defaultNow(),
    endedAt: time('ended_at'),
    archived: boolean('archived').notNull().default(false),
    archiveLocation: text('archive_location'),
    archiveSha256: text('archive_sha256'),
    deletedAt: time('deleted_at'),
  },
  (table) => [
    check('chat_sessions_one_owner', sql`num_nonnulls(${table.userId}, ${table.visitorHash}) = 1`),
    check('chat_sessions_mode', sql`${table.mode} in ('fast', 'balanced', 'quality', 'adaptive')`),
    check(
      'chat_sessions_status',
      sql`${table.status} in ('created', 'running', 'completed', 'failed', 'killed', 'deleted')`,
    ),
    check('chat_sessions_title_source', sql`${table.titleSource} in ('message', 'client', 'model')`),
    // A name that a deleted session had is free again.
    uniqueIndex('chat_sessions_owner_external_id')
      .on(table.owner, table.externalId)
      .where(sql`${table.deletedAt} is null`),
    index('chat_sessions_search')
      .using('gin', table.owner, sql`search_text(${table.title}) gin_trgm_ops`)
      .with({ fastupdate: false })
      .where(sql`${table.deletedAt} is null`),
    // All of an owner's, deleted ones too: for claim, export and purge.
    index('chat_sessions_owner').on(table.owner, table.id),
    index('chat_sessions_owner_activity')
      .on(table.owner, table.lastActivityAt.desc().nullsFirst(), table.id.desc().nullsFirst())
      .where(sql`${table.deletedAt} is null`),
    index('chat_sessions_owner_status_activity')
      .on(table.owner, table.status, table.lastActivityAt.desc().nullsFirst(), table.id.desc().nullsFirst())
      .where(sql`${table.deletedAt} is null`),
    index('chat_sessions_archive').on(table.archived, table.endedAt).where(sql`${table.endedAt} is not null`),
    index('chat_sessions_metadata').using('gin', table.metadata.op('jsonb_path_ops')),
    index('chat_sessions_tags').using('gin', table.tags),
  ],
)

export const chatMessages = pgTable(
  'chat_messages',
  {
    id: uuid('id').primaryKey(),
    sessionId: uuid('session_id')
      .notNull()
      .references(() => chatSessions.id, { onDelete: 'cascade' }),
    seq: integer('seq').notNull(),
    /** Of its session, once more: search asks for owner and words in one index. Null of what search does not find. */
    owner: text('owner'),
    parentId: uuid('parent_id'),
    runId: uuid('run_id'),
    role: text('role').notNull(),
    content: text('content').notNull().default(''),
    parts: jsonb('parts').notNull().default([]),
    status: text('status').notNull(),
    agentId: text('agent_id'),
    model: text('model'),
    clientMessageId: text('client_message_id'),
    retrievedDocs: jsonb('retrieved_docs'),
    rerankerUsed: boolean('reranker_used'),
    inputTokens: integer('input_tokens'),
    outputTokens: integer('output_tokens'),
    totalTokens: integer('total_tokens'),
    latencyMs: integer('latency_ms'),
    ttftMs: integer('ttft_ms'),
    finishReason: text('finish_reason'),
    error: jsonb('error'),
    metadata: jsonb('metadata').notNull().default({}),
    createdAt: time('created_at').notNull().defaultNow(),
    completedAt: time('completed_at'),
  },
  (table) => [
    unique('chat_messages_session_seq').on(table.sessionId, table.seq),
    check('chat_messages_role', sql`${table.role} in ('user', 'assistant', 'system', 'tool')`),
    check(
      'chat_messages_status',
      sql`${table.status} in ('streaming', 'completed', 'stopped', 'failed', 'interrupted')`,
    ),
    index('chat_messages_parent').on(table.parentId),
    index('chat_messages_run').on(table.runId),
    index('chat_messages_session_created').on(table.sessionId, table.createdAt),
    index('chat_messages_retrieved_docs').using('gin', table.retrievedDocs.op('jsonb_path_ops')),
    // search_text() takes no more than 200 000 characters, so that no message is too long for the index. With fastupdate the
    // commit of one reply in a hundred waited 1.2 s for the pending list of all the others; without, of 2000 characters
    // each takes 7 ms, Chinese ones 20.
    // What a client has brought has no owner: a conversation that is sent again with each request would take seconds each time.
    index('chat_messages_words')
      .using('gin', table.owner, sql`search_text(${table.content}) gin_trgm_ops`)
      .with({ fastupdate: false })
      .where(sql`${table.owner} is not null`),
  ],
)

export const chatRuns = pgTable(
  'chat_runs',
  {
    id: uuid('id').primaryKey(),
    sessionId: uuid('session_id')
      .notNull()
      .references(() => chatSessions.id, { onDelete: 'cascade' }),
    userMessageId: uuid('user_message_id').notNull(),
    messageId: uuid('message_id').notNull(),
    kind: text('kind').notNull().default('chat'),
    status: text('status').notNull(),
    mode: text('mode').notNull(),
    provider: text('provider').notNull(),
    model: text('model').notNull(),
    phase: text('phase'),
    roundNumber: integer('round_number'),
    /** Which models may be asked, why, and what was asked for beside the message: see runs/model.ts. */
    request: jsonb('request'),
    /** Every time a provider was asked: who, how it ended, what it used. */
    upstreamCalls: jsonb('upstream_calls').notNull().default([]),
    /** What is held back of budgets until the run ends: see runs/budgets.ts. */
    reservation: jsonb('reservation'),
    cost: numeric('cost'),
    usage: jsonb('usage'),
    usageSource: text('usage_source'),
    finishReason: text('finish_reason'),
    error: jsonb('error'),
    generation: integer('generation').notNull().default(1),
    instanceId: uuid('instance_id'),
    attempts: integer('attempts').notNull().default(1),
    lastSeq: integer('last_seq').notNull().default(0),
    stopRequestedAt: time('stop_requested_at'),
    /** The stop that was asked for is a kill: the session is then `killed`. */
    killRequestedAt: time('kill_requested_at'),
    /** While it is queued: whether its message follows the one before it, which may be out of sight as yet. */
    parentPending: boolean('parent_pending').notNull().default(true),
    onDisconnect: text('on_disconnect').notNull().default('continue'),
    owner: text('owner').notNull(),
    idempotencyKey: text('idempotency_key'),
    requestHash: text('request_hash').notNull(),
    ticketKey: text('ticket_key'),
    createdAt: time('created_at').notNull().defaultNow(),
    startedAt: time('started_at'),
    firstTokenAt: time('first_token_at'),
    endedAt: time('ended_at'),
  },
  (table) => [
    unique('chat_runs_owner_key').on(table.owner, table.idempotencyKey),
    uniqueIndex('chat_runs_one_running').on(table.sessionId).where(sql`${table.status} = 'running'`),
    check(
      'chat_runs_status',
      sql`${table.status} in ('queued', 'running', 'completed', 'stopped', 'failed', 'interrupted')`,
    ),
    check('chat_runs_mode', sql`${table.mode} in ('fast', 'balanced', 'quality', 'adaptive')`),
    check('chat_runs_on_disconnect', sql`${table.onDisconnect} in ('continue', 'stop')`),
    index('chat_runs_session').on(table.sessionId, table.createdAt),
    index('chat_runs_session_queued').on(table.sessionId).where(sql`${table.status} = 'queued'`),
    // For a repeat by a client that has no key.
    index('chat_runs_owner_hash').on(table.owner, table.requestHash, table.createdAt.desc().nullsFirst()),
    index('chat_runs_owner_active').on(table.owner).where(sql`${table.status} in ('queued', 'running')`),
    index('chat_runs_instance_active').on(table.instanceId).where(sql`${table.status} in ('queued', 'running')`),
  ],
)

/** New text of a running reply since its last checkpoint, a row per part; deleted by the commit. */
export const runCheckpoints = pgTable(
  'run_checkpoints',
  {
    runId: uuid('run_id')
      .notNull()
      .references(() => chatRuns.id, { onDelete: 'cascade' }),
    generation: integer('generation').notNull(),
    seq: integer('seq').notNull(),
    part: integer('part').notNull(),
    kind: text('kind').notNull(),
    partOffset: integer('part_offset').notNull(),
    text: text('text').notNull(),
    detail: jsonb('detail'),
  },
  (table) => [primaryKey({ columns: [table.runId, table.generation, table.seq, table.part] })],
)

/**
 * What was spent on a day (UTC) by an owner (`user:…`, `visitor:…`) or by all (`all`), and what running replies may still
 * spend. `within` is what a reservation comes to: false is refused by the check, and the whole statement with it.
 */
export const budgetDays = pgTable(
  'budget_days',
  {
    scope: text('scope').notNull(),
    day: date('day').notNull(),
    spentCost: numeric('spent_cost').notNull().default('0'),
    reservedCost: numeric('reserved_cost').notNull().default('0'),
    spentTokens: bigint('spent_tokens', { mode: 'number' }).notNull().default(0),
    reservedTokens: bigint('reserved_tokens', { mode: 'number' }).notNull().default(0),
    within: boolean('within').notNull().default(true),
  },
  (table) => [primaryKey({ columns: [table.scope, table.day] }), check('budget_days_within', sql`${table.within}`)],
)

/** The gateway processes. A run whose process's lease has passed, by the database's clock, may be taken over. */
export const instances = pgTable('instances', {
  id: uuid('id').primaryKey(),
  leaseUntil: time('lease_until').notNull(),
  draining: boolean('draining').notNull().default(false),
  startedAt: time('started_at').notNull().defaultNow(),
})

/** Everybody who has come with a verified token. What somebody owns is found by `subject`; no password is kept anywhere. */
export const users = pgTable(
  'users',
  {
    id: uuid('id').primaryKey(),
    /** `iss` of the token; empty when it names none. */
    issuer: text('issuer').notNull(),
    subject: text('subject').notNull(),
    createdAt: time('created_at').notNull().defaultNow(),
  },
  (table) => [unique('users_subject_issuer').on(table.subject, table.issuer)],
)

/**
 * Keys of this gateway, for clients that cannot get a JWT: whoever holds one is its user. Of the key itself only the SHA-256
 * is kept. A key that was revoked stays as a row, so that a list can tell.
 */
export const apiKeys = pgTable(
  'api_keys',
  {
    id: uuid('id').primaryKey(),
    keyHash: text('key_hash').notNull().unique('api_keys_key_hash'),
    /** Whose it is: `sub`, as in the tokens of the user. */
    subject: text('subject').notNull(),
    name: text('name').notNull().default(''),
    createdAt: time('created_at').notNull().defaultNow(),
    expiresAt: time('expires_at'),
    revokedAt: time('revoked_at'),
    /** To within a few minutes: a write for each request would be more work than most requests. */
    lastUsedAt: time('last_used_at'),
  },
  (table) => [index('api_keys_subject').on(table.subject)],
)

/**
 * Documents of a session, a row per version. The highest version of a name is what the document is now: `ready`,
 * `generating` while somebody makes it (until `lease_until`), `deleted`. Version numbers are never used twice.
 */
export const artifacts = pgTable(
  'artifacts',
  {
    sessionId: uuid('session_id')
      .notNull()
      .references(() => chatSessions.id, { onDelete: 'cascade' }),
    name: text('name').notNull(),
    version: integer('version').notNull(),
    status: text('status').notNull().default('ready'),
    contentType: text('content_type').notNull(),
    /** Text, also of JSON: jsonb would not give back what was written. */
    body: text('body').notNull().default(''),
    leaseUntil: time('lease_until'),
    createdAt: time('created_at').notNull().defaultNow(),
  },
  (table) => [
    primaryKey({ columns: [table.sessionId, table.name, table.version] }),
    check('artifacts_status', sql`${table.status} in ('generating', 'ready', 'deleted')`),
  ],
)

/** What a person thinks of a message: one opinion a message, because a session has one owner. */
export const feedback = pgTable(
  'feedback',
  {
    messageId: uuid('message_id')
      .primaryKey()
      .references(() => chatMessages.id, { onDelete: 'cascade' }),
    rating: smallint('rating').notNull(),
    comment: text('comment'),
    createdAt: time('created_at').notNull().defaultNow(),
    updatedAt: time('updated_at').notNull().defaultNow(),
  },
  (table) => [check('feedback_rating', sql`${table.rating} in (-1, 1)`)],
)
