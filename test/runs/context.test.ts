/**
 * What a model is told when tools of the client are called, and when a conversation is longer than its window: answers to
 * calls are accepted once and whole, calls go upstream with their answers, and a summary is made once, paid for by the
 * session, and used by whoever comes after it on the same branch.
 */
import { randomUUID } from 'node:crypto'
import postgres from 'postgres'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import { Problem } from '../../src/errors.ts'
import type { Part, Usage } from '../../src/log/event.ts'
import { createAccept, type PlansFor } from '../../src/runs/accept.ts'
import { type Asked, hashAsked } from '../../src/runs/asked.ts'
import { commitRun } from '../../src/runs/commit.ts'
import type { RunFacts, UpstreamCall } from '../../src/runs/model.ts'
import { promote } from '../../src/runs/queue.ts'
import { createRunStore } from '../../src/runs/store.ts'
import { createSummaries, type SummariesOptions, type SummaryRequest } from '../../src/runs/summary.ts'
import { fitMessages } from '../../src/runs/window.ts'
import { type HistoryMessage, readHistory } from '../../src/sessions/context.ts'
import { createRemoval } from '../../src/sessions/removal.ts'
import type { UpstreamEvent, UpstreamMessage } from '../../src/upstream/upstream.ts'
import { databases } from '../support/database.ts'
import { createOwner, endingOf, openStore, plansFor, silent, textPart, untilWaiting } from '../support/runs.ts'

const call = (id: string, name = 'look', input: unknown = { at: id }): Part => ({
  kind: 'tool_call',
  text: JSON.stringify(input),
  call_id: id,
  name,
  input,
})
const tools = [{ name: 'look', description: 'Looks.', parameters: { type: 'object' } }]
const codeOf = (error: unknown) => (error instanceof Problem ? error.code : String(error))

test('what may be called is a part of what is asked, and old requests are what they were', (t) => {
  const session_id = randomUUID()
  const [output, error] = [1, { code: 'broken', message: 'It broke.' }]
  const hashes = [
    { message: 'Hi' },
    { message: 'Hi', tools: [] },
    { message: 'Hi', tools },
    { message: 'Hi', tools, tool_choice: 'required' as const },
    { session_id, tool_results: [{ call_id: 'a', output }] },
    { session_id, tool_results: [{ call_id: 'a', output: 2 }] },
    { session_id, tool_results: [{ call_id: 'a', error }] },
    { session_id, tool_results: [{ call_id: 'a', output }], tools },
    { regenerate: session_id },
    { regenerate: session_id, tools },
  ].map(hashAsked)
  t.equal(new Set(hashes).size, hashes.length)
  t.end()
})

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, url, runs, sessions, messages } = await openStore(t, kind)
    const second = url === undefined ? db : openPostgres({ url, unpooledUrl: url, poolSize: 5 })
    if (second !== db) t.teardown(() => second.close())
    const processes = [db, second].map((on) =>
      createAccept({ db: on, runs: createRunStore(on), instanceId: randomUUID(), runsPerOwnerMax: 0 }),
    )
    type Owner = ReturnType<typeof createOwner>
    const ask = async (owner: Owner, asked: Asked, by = 0, plans: PlansFor = plansFor) =>
      (await processes[by % 2]!.accept(owner, asked, plans)).run
    const end = (run: RunFacts, parts: readonly Part[] = [textPart('Reply')], more = {}) =>
      commitRun(db, run.id, 1, endingOf(parts, more))
    const told = async (run: RunFacts, messagesMax = 100) =>
      (await readHistory(db, run.user_message_id, messagesMax)).messages
    const shortly = (all: readonly HistoryMessage[]) =>
      all.map((message) => {
        const { role, content } = message
        if (role === 'tool') return `tool ${message.callId} ${content}`
        const calls = role === 'assistant' ? (message.parts ?? []).flatMap(({ call_id }) => call_id ?? []) : []
        return [role, content, ...calls].join(' ')
      })

    /** A session whose last reply has called the client's tools. */
    async function called(owner: Owner, parts: readonly Part[] = [call('a')], body: object = {}) {
      const run = await ask(owner, { message: 'Look', tools, ...body })
      await end(run, parts, { finishReason: 'tool_calls' })
      return run
    }

    await t.test('answers to calls are a message behind the reply, and the next reply is made like it', async (t) => {
      const owner = createOwner()
      const other = { plan: { candidates: [{ provider: 'other', model: 'm' }], profile: 'quality' } } as const
      const plans: PlansFor = () => ({ fast: other, balanced: other, quality: other, adaptive: other })
      const first = await ask(owner, { message: 'Look', tools, tool_choice: 'required', mode: 'quality' }, 0, plans)
      t.match(first.request, { tools, tool_choice: 'required', profile: 'quality' })
      await end(first, [textPart('So.'), call('a'), call('b')], { finishReason: 'tool_calls' })
      const { session_id } = first
      const tool_results = [
        { call_id: 'b', error: { code: 'denied', message: 'Not you.' } },
        { call_id: 'a', output: { seen: ['x\u0000', '\ud800'] } },
      ]
      const next = await ask(owner, { session_id, tool_results })
      t.match(next, { mode: 'quality', provider: 'other', model: 'm', request: { tools, profile: 'quality' } })
      t.notOk(next.request?.tool_choice, 'what had to be called has been')
      t.match(await messages.readReply(next.user_message_id), {
        role: 'tool',
        content: '',
        parent_id: first.message_id,
        run_id: next.id,
        status: 'completed',
        parts: [
          { kind: 'tool_call', text: '', call_id: 'a', name: 'look', output: { seen: ['x', '\ufffd'] } },
          { kind: 'tool_call', text: '', call_id: 'b', name: 'look', error: { code: 'denied', message: 'Not you.' } },
        ],
      })
      t.match(await sessions.getSession(owner, session_id), { message_count: 4, title: 'Look' })
      const expected = [
        { role: 'user', content: 'Look', id: first.user_message_id },
        {
          role: 'assistant',
          content: 'So.',
          parts: [textPart('So.'), call('a'), call('b')],
          provider: 'other',
          id: first.message_id,
        },
        { role: 'tool', callId: 'a', name: 'look', content: '{"seen":["x","\ufffd"]}', id: next.user_message_id },
        {
          role: 'tool',
          callId: 'b',
          name: 'look',
          content: '{"error":{"code":"denied","message":"Not you."}}',
          isError: true,
          id: next.user_message_id,
        },
      ]
      const heard: readonly UpstreamMessage[] = await told(next)
      t.same(heard, expected)

      await end(next, [textPart('Seen.')])
      const [again, byAnswer, switched] = [
        await ask(owner, { regenerate: next.message_id }),
        await ask(owner, { regenerate: next.user_message_id, on_busy: 'queue', tools: [] }),
        await ask(owner, { message: 'And?', session_id, on_busy: 'queue' }),
      ]
      t.equal(again.user_message_id, next.user_message_id)
      t.equal(byAnswer.user_message_id, next.user_message_id)
      t.same([again.request?.tools, byAnswer.request?.tools, switched.request?.tools], [tools, [], undefined])
      t.same(await told(again), expected, 'a regenerate of the reply behind answers them once more')
      await t.rejects(ask(owner, { edit: next.user_message_id, message: 'x' }), { code: 'invalid_request' })
    })

    await t.test('answers that are not those to all calls of a reply are refused, and nothing is stored', async (t) => {
      const owner = createOwner()
      const { session_id, message_id } = await called(owner, [call('a'), call('b'), { ...call('s'), output: 1 }])
      const plain = await ask(owner, { message: 'Hi' })
      await end(plain, [textPart('Hi')])
      const [a, b] = [
        { call_id: 'a', output: 1 },
        { call_id: 'b', output: null },
      ]
      const stranger = createOwner()
      const refusals: readonly (readonly [string, Asked, string, Owner?])[] = [
        ['one is missing', { session_id, tool_results: [a] }, 'invalid_request'],
        ['one is of no call', { session_id, tool_results: [a, b, { call_id: 'c', output: 1 }] }, 'invalid_request'],
        [
          'one was answered by the gateway',
          { session_id, tool_results: [a, b, { call_id: 's', output: 1 }] },
          'invalid_request',
        ],
        ['none is known', { session_id, tool_results: [{ call_id: 'x', output: 1 }] }, 'invalid_request'],
        ['one twice', { session_id, tool_results: [a, a, b] }, 'invalid_request'],
        ['neither output nor error', { session_id, tool_results: [a, { call_id: 'b' }] }, 'invalid_request'],
        ['both', { session_id, tool_results: [{ ...a, error: { code: 'x', message: '' } }, b] }, 'invalid_request'],
        ['with a message', { session_id, message: 'Hi', tool_results: [a, b] }, 'invalid_request'],
        ['neither', { session_id }, 'invalid_request'],
        ['without a session', { tool_results: [a, b] }, 'invalid_request'],
        [
          'a reply without calls',
          { session_id: plain.session_id, parent_id: plain.message_id, tool_results: [a, b] },
          'invalid_request',
        ],
        [
          'a message of another session',
          { session_id, parent_id: plain.message_id, tool_results: [a, b] },
          'not_found',
        ],
        ['another session', { session_id: randomUUID(), tool_results: [a, b] }, 'not_found'],
        ['somebody else', { session_id, tool_results: [a, b] }, 'not_found', stranger],
        ['too much', { session_id, tool_results: [{ call_id: 'a', output: 'x'.repeat(256 * 1024) }, b] }, 'too_large'],
        ['two tools of one name', { message: 'x', tools: [...tools, ...tools] }, 'invalid_request'],
        [
          'too large tools',
          { message: 'x', tools: [{ ...tools[0]!, description: 'x'.repeat(64 * 1024) }] },
          'too_large',
        ],
      ]
      for (const [title, asked, code, by = owner] of refusals) await t.rejects(ask(by, asked), { code }, title)
      t.match(await sessions.getSession(owner, session_id), { message_count: 2, status: 'completed' })
      const { message_id: reply } = await ask(owner, { session_id, parent_id: message_id, tool_results: [b, a] })
      t.ok(reply, 'twin: the right ones are taken')
    })

    await t.test(
      'calls are answered once, whoever answers at the same instant, and a repeat finds its run',
      async (t) => {
        for (const on_busy of ['reject', 'queue'] as const) {
          const owner = createOwner()
          const { session_id } = await called(owner)
          const blocker = on_busy === 'queue' ? await ask(owner, { message: 'Else', session_id }) : undefined
          const results = await Promise.allSettled(
            Array.from({ length: 4 }, (_, n) =>
              ask(
                owner,
                { session_id, tool_results: [{ call_id: 'a', output: n }], client_message_id: `k${n}`, on_busy },
                n,
              ),
            ),
          )
          const winners = results.flatMap((result, n) =>
            result.status === 'fulfilled' ? [{ n, run: result.value }] : [],
          )
          t.equal(winners.length, 1, on_busy)
          const codes = new Set(
            results.flatMap((result) => (result.status === 'rejected' ? [codeOf(result.reason)] : [])),
          )
          codes.delete('session_busy')
          t.ok(codes.size === 0 || (codes.size === 1 && codes.has('conflict')), [...codes].join())
          const { n, run } = winners[0]!
          const asked = { session_id, tool_results: [{ call_id: 'a', output: n }], client_message_id: `k${n}` }
          t.equal((await ask(owner, asked)).id, run.id, 'also while it waits or runs')
          await t.rejects(ask(owner, { ...asked, tool_results: [{ call_id: 'a', output: 'other' }] }), {
            code: 'idempotency_mismatch',
          })
          if (blocker !== undefined) {
            await end(blocker)
            const [begun] = await promote(db, randomUUID(), session_id)
            t.equal(begun?.id, run.id)
            t.same(
              shortly(await told(run)),
              ['user Look', 'assistant  a', `tool a ${n}`],
              'they stay behind their call',
            )
          }
          await end(run)
          t.equal((await ask(owner, asked)).id, run.id)
          await t.rejects(ask(owner, { ...asked, client_message_id: 'new' }), { code: 'conflict' }, 'answered')
        }
      },
    )

    if (url !== undefined) {
      await t.test('of two answers that saw the calls open and wait for the session’s row, one is taken', async (t) => {
        const holder = postgres(url, { max: 1, onnotice: () => undefined })
        t.teardown(() => holder.end())
        const owner = createOwner()
        const { session_id } = await called(owner)
        await ask(owner, { message: 'Else', session_id })
        const pending: Promise<unknown>[] = []
        await holder.begin(async (hold) => {
          await hold`select 1 from chat_sessions where id = ${session_id} for update`
          for (const output of [1, 2]) {
            const asked: Asked = { session_id, tool_results: [{ call_id: 'a', output }], on_busy: 'queue' }
            pending.push(ask(owner, asked, output).catch((error: unknown) => error))
            await untilWaiting(db, output)
          }
        })
        t.match(await Promise.all(pending), [{ status: 'queued' }, { code: 'conflict' }])
      })
    }

    await t.test('answers that come before the reply is stored are told to wait', async (t) => {
      const owner = createOwner()
      const run = await ask(owner, { message: 'Look', tools })
      const asked = { session_id: run.session_id, tool_results: [{ call_id: 'a', output: 1 }] }
      await t.rejects(ask(owner, asked), { code: 'session_busy', members: { run_id: run.id } })
      await t.rejects(ask(owner, { ...asked, parent_id: run.message_id, on_busy: 'queue' }), { code: 'session_busy' })
      await end(run, [call('a')], { finishReason: 'tool_calls' })
      t.ok(await ask(owner, asked))
    })

    await t.test('a model hears no call without its answer, no source, and no reasoning without a seal', async (t) => {
      const owner = createOwner()
      const parts: Part[] = [
        { kind: 'reasoning', text: 'Hm.', signature: 'sealed' },
        { kind: 'reasoning', text: 'Unsealed.' },
        textPart('A'),
        { ...call('s'), output: { found: 1 } },
        { kind: 'source', text: '', url: 'https://example.com' },
        { kind: 'file', text: '', url: 'data:image/png;base64,AA==', media_type: 'image/png' },
        textPart('B'),
        call('open'),
        { kind: 'tool_call', text: '{"cu', call_id: 'cut', name: 'look' },
      ]
      const first = await called(owner, parts)
      const { session_id } = first
      const second = await ask(owner, { message: 'Never mind', session_id })
      t.same((await told(second)).slice(1), [
        {
          role: 'assistant',
          content: 'AB',
          parts: [parts[0], parts[2], parts[3], parts[6]],
          provider: 'demo',
          id: first.message_id,
        },
        { role: 'user', content: 'Never mind', id: second.user_message_id },
      ])
      await end(second, [{ kind: 'reasoning', text: 'Only this.', signature: 'sealed' }, call('x')])
      const third = await ask(owner, { message: 'Go on', session_id })
      t.same(shortly(await told(third)).slice(2), ['user Never mind', 'user Go on'], 'a reply of nothing else is none')
      // As from a file that somebody has written by hand.
      await db.rows(sql`update chat_messages set role = 'tool' where id = ${second.user_message_id}::uuid`)
      t.same(shortly(await told(third)).slice(2), ['user Go on'], 'an answer to nothing is none')
    })

    await t.test('a window begins with the user, and holds the turn that is under way', async (t) => {
      const owner = createOwner()
      let run = await ask(owner, { message: 'Zero' })
      const { session_id } = run
      await end(run)
      run = await ask(owner, { message: 'One', session_id, tools })
      for (const id of ['a', 'b', 'c']) {
        await end(run, [call(id)])
        run = await ask(owner, { session_id, tool_results: [{ call_id: id, output: id }] })
      }
      const turn = ['user One', ...['a', 'b', 'c'].flatMap((id) => [`assistant  ${id}`, `tool ${id} ${id}`])]
      for (const max of [1, 2, 5, 7, 8]) t.same(shortly(await told(run, max)), turn, `${max} messages`)
      t.same(shortly(await told(run, 9)), ['user Zero', 'assistant Reply', ...turn])
      const history = await readHistory(db, run.user_message_id, 8)
      const [zero] = (await messages.listMessages(owner, session_id, {})).data.slice(1)
      t.equal(history.leftOut, zero?.id, 'it says what it leaves out, also what it could not begin with')
      t.equal((await readHistory(db, run.user_message_id, 9)).leftOut, undefined)
      await end(run, [textPart('Done')])
      const next = await ask(owner, { message: 'Two', session_id })
      t.same(shortly(await told(next, 4)), ['user Two'], 'no window begins inside a turn')
    })

    // ---- summaries

    const usage = { input_tokens: 100, output_tokens: 10, total_tokens: 110 }
    const estimateText = (text: string) => text.length

    type AskModel = (request: SummaryRequest, signal: AbortSignal) => AsyncIterable<UpstreamEvent>

    /** Its model is counted as far as it says what it has used; else as an estimate of what it was asked. */
    function startSummaries(askModel: AskModel, more: Partial<SummariesOptions> = {}) {
      const requests: SummaryRequest[] = []
      const changed: string[] = []
      const summaries = createSummaries({
        db,
        plan: { candidates: [{ provider: 'demo', model: 'small' }], profile: 'fast' },
        contextTokens: 20_000,
        ask(request, signal) {
          requests.push(request)
          const calls: UpstreamCall[] = []
          const counted = { usage: undefined as Usage | undefined, source: 'estimated' as 'provider' | 'estimated' }
          async function* reply() {
            try {
              for await (const event of askModel(request, signal)) {
                counted.usage ??= { input_tokens: 1, output_tokens: 1, total_tokens: 2 }
                if (event.type === 'usage') Object.assign(counted, { usage: event.usage, source: 'provider' })
                yield event
              }
            } finally {
              calls.push({ provider: 'demo', model: 'small', outcome: 'over' } as UpstreamCall)
            }
          }
          const costOf = ({ total_tokens }: Usage) => `0.0${total_tokens}`
          const totals = () => ({ ...counted, costUsd: counted.usage === undefined ? '0' : costOf(counted.usage) })
          return { reply: reply(), ledger: { calls, totals } }
        },
        estimateText,
        logger: silent,
        changes: { changed: (id) => void changed.push(id), removed: () => undefined },
        ...more,
      })
      return { summaries, requests, changed }
    }

    async function* say(text: string): AsyncGenerator<UpstreamEvent> {
      yield { type: 'text', text }
      yield { type: 'usage', usage }
      yield { type: 'finish', reason: 'stop' }
    }

    /** Messages 1 to `count`, each with a reply. */
    async function talk(owner: Owner, count: number, from: { session_id?: string; parent_id?: string } = {}) {
      let run: RunFacts | undefined
      for (let n = 1; n <= count; n += 1) {
        const place = n === 1 ? from : { session_id: run!.session_id }
        run = await ask(owner, { message: `Message ${n}`, ...place })
        await end(run, [textPart(`Reply ${n}`)])
      }
      return run!
    }
    const stateOf = async (id: string) =>
      (
        await db.rows<{ summary: string | null; upto: string | null; leased: boolean; runs: number }>(sql`
          select summary, summary_message_id as upto, coalesce(summary_lease_until > now(), false) as leased, (
            select count(*)::int from chat_runs r where r.session_id = s.id and r.kind = 'summary'
          ) as runs
          from chat_sessions s where id = ${id}::uuid`)
      )[0]
    const fold = async (run: RunFacts, messagesMax: number) => {
      const { messages: all, ...rest } = await readHistory(db, run.user_message_id, messagesMax)
      return fitMessages(all, { budgetTokens: 10_000, estimate: ({ content }) => content.length, ...rest })
    }

    await t.test('what leaves the window is summarized once, counted, and told to the next model', async (t) => {
      const owner = createOwner()
      const last = await talk(owner, 5)
      const { session_id } = last
      const before = await sessions.getSession(owner, session_id)
      const others = createOwner()
      await db.rows(sql`
        insert into budget_days (scope, day)
        select scope, (now() at time zone 'UTC')::date
        from jsonb_array_elements_text(${JSON.stringify([owner.key, others.key, 'all'])}::jsonb) scope`)
      const fitted = await fold(last, 4)
      const hold = Promise.withResolvers<void>()
      const begun = Promise.withResolvers<void>()
      async function* slowly() {
        begun.resolve()
        await hold.promise
        yield* say('They have talked.')
      }
      const one = startSummaries(slowly)
      const two = startSummaries(slowly)
      for (const { summaries } of [one, two, one]) summaries.afterRun({ facts: last, fold: fitted.fold })
      await begun.promise
      // It waits for the model, and the session does not wait for it.
      const next = await ask(owner, { message: 'Message 6', session_id })
      await end(next, [textPart('Reply 6')])
      hold.resolve()
      await Promise.all([one.summaries.settled(), two.summaries.settled()])
      const requests = [...one.requests, ...two.requests]
      t.equal(requests.length, 1, 'of two processes one')
      t.match(requests[0], { maxOutputTokens: 1024, messages: [{ role: 'system' }, { role: 'user' }] })
      const record = requests[0]!.messages[1]!.content.split('\n').map((line) => JSON.parse(line))
      t.same(record.slice(0, 2), [
        { role: 'user', text: 'Message 1' },
        { role: 'assistant', text: 'Reply 1' },
      ])
      t.same(record.at(-1), { role: 'assistant', text: 'Reply 4' })
      t.match(await stateOf(session_id), {
        summary: 'They have talked.',
        upto: fitted.fold?.upTo,
        leased: false,
        runs: 1,
      })
      const [row] = await db.rows<{ id: string }>(
        sql`select id from chat_runs where kind = 'summary' and session_id = ${session_id}::uuid`,
      )
      t.match(await runs.getRun(owner, row!.id), {
        kind: 'summary',
        status: 'completed',
        provider: 'demo',
        model: 'small',
        profile: 'fast',
        cost_usd: '0.0110',
        usage,
        usage_source: 'provider',
        finish_reason: 'stop',
        upstream_calls: [{ provider: 'demo', model: 'small', outcome: 'over' }],
      })
      const after = await sessions.getSession(owner, session_id)
      t.same(
        [after.total_tokens - before.total_tokens, after.total_cost_usd, after.message_count, after.status],
        [7 + 110, '0.0110', 12, 'completed'],
      )
      t.ok(after.version > before.version)
      const budgets = await db.rows<{ scope: string; cost: string; tokens: number }>(sql`
        select scope, spent_cost::text as cost, spent_tokens::int as tokens from budget_days where spent_tokens > 0`)
      t.same(
        budgets.toSorted((a, b) => (a.scope < b.scope ? -1 : 1)),
        ['all', owner.key].map((scope) => ({ scope, cost: '0.0110', tokens: 110 })),
        'a budget that is there is told',
      )
      t.same([...one.changed, ...two.changed], [session_id], 'who keeps copies is told')

      const following = await ask(owner, { message: 'Message 7', session_id })
      const window = await fold(following, 6)
      t.same(
        shortly(window.messages).map((line) => line.split('\n').at(-1)),
        [
          'They have talked.',
          'user Message 5',
          'assistant Reply 5',
          'user Message 6',
          'assistant Reply 6',
          'user Message 7',
        ],
      )
      t.equal((await fold(following, 100)).messages.length, 13, 'a window that holds everything needs none')
      t.match(window.fold, { summarizedTo: fitted.fold?.upTo }, 'the next message would leave a gap')
      t.equal((await fold(following, 8)).fold, undefined)
      await end(following)

      // The summary of before goes into the next one, and only what came behind it.
      const { summaries, requests: later } = startSummaries(() => say('More.'))
      const eighth = await ask(owner, { message: 'Message 8', session_id })
      await end(eighth)
      summaries.afterRun({ facts: eighth, fold: (await fold(eighth, 4)).fold })
      await summaries.settled()
      const lines = later[0]!.messages[1]!.content.split('\n').map((line) => JSON.parse(line))
      t.same(lines.slice(0, 2), [{ summary: 'They have talked.' }, { role: 'user', text: 'Message 5' }])
      t.match(await stateOf(session_id), { summary: 'More.', runs: 2 })
      summaries.afterRun({ facts: eighth, fold: { upTo: eighth.message_id, summarizedTo: null } })
      await summaries.settled()
      t.equal(later.length, 1, 'who has seen an older summary makes none')
    })

    await t.test('a summary is told on the branch that it was made for, and on no other', async (t) => {
      const owner = createOwner()
      const last = await talk(owner, 4)
      const { session_id } = last
      const all = (await messages.listMessages(owner, session_id, {})).data
      const { summaries, requests } = startSummaries(() => say('Four.'))
      summaries.afterRun({ facts: last, fold: { upTo: all[5]!.id, summarizedTo: null } })
      await summaries.settled()
      const same = await ask(owner, { message: 'On', session_id })
      t.match(await readHistory(db, same.user_message_id, 2), { summary: { text: 'Four.', messageId: all[5]!.id } })
      await end(same)
      const other = await ask(owner, { message: 'Aside', session_id, parent_id: all[3]!.id })
      const { summary, summarizedTo } = await readHistory(db, other.user_message_id, 2)
      t.same([summary, summarizedTo], [undefined, all[5]!.id])
      await end(other)
      summaries.afterRun({ facts: other, fold: { upTo: all[3]!.id, summarizedTo: all[5]!.id } })
      await summaries.settled()
      t.notMatch(requests[1]?.messages[1]?.content, /Four\./, 'nor does it go into one of another branch')
      t.match(await stateOf(session_id), { upto: all[3]!.id, runs: 2 })
    })

    await t.test(
      'a failure is counted and waited for, a shutdown lets go, and what is deleted stays as it is',
      async (t) => {
        const owner = createOwner()
        const last = await talk(owner, 2)
        const { session_id } = last
        const upTo = (await messages.listMessages(owner, session_id, {})).data[1]!.id
        const asked = { facts: last, fold: { upTo, summarizedTo: null } }
        const failing = startSummaries(() => ({
          [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(new Problem('upstream_rejected')) }),
        }))
        failing.summaries.afterRun(asked)
        await failing.summaries.settled()
        failing.summaries.afterRun(asked)
        await failing.summaries.settled()
        t.equal(failing.requests.length, 1, 'not at once again')
        t.match(await stateOf(session_id), { summary: null, upto: null, leased: true, runs: 1 })
        const [failed] = await db.rows<{ status: string; error: { code: string }; usage: unknown }>(sql`
        select status, error, usage from chat_runs where kind = 'summary' and session_id = ${session_id}::uuid`)
        t.match(failed, { status: 'failed', error: { code: 'upstream_rejected' }, usage: null })
        t.match(await sessions.getSession(owner, session_id), { status: 'completed', total_cost_usd: '0' })

        const free = () =>
          db.rows(sql`update chat_sessions set summary_lease_until = null where id = ${session_id}::uuid`)
        await free()
        const begun = Promise.withResolvers<void>()
        async function* stall(_: SummaryRequest, signal: AbortSignal): AsyncGenerator<UpstreamEvent> {
          yield { type: 'text', text: 'They' }
          begun.resolve()
          await new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
        }
        const draining = startSummaries(stall)
        draining.summaries.afterRun(asked)
        await begun.promise
        await draining.summaries.close()
        t.equal(draining.summaries.size, 0)
        t.match(await stateOf(session_id), { summary: null, leased: false, runs: 2 }, 'the lease is given back')
        const [cut] = await db.rows<{ status: string; usage: { output_tokens: number }; usage_source: string }>(sql`
        select status, usage, usage_source from chat_runs
        where kind = 'summary' and session_id = ${session_id}::uuid order by id desc limit 1`)
        t.match(cut, { status: 'interrupted', usage: { output_tokens: 1 }, usage_source: 'estimated' })
        draining.summaries.afterRun(asked)
        t.equal(draining.summaries.size, 0)

        const slow = startSummaries(stall, { limits: { askMs: 1 } })
        slow.summaries.afterRun(asked)
        await slow.summaries.settled()
        t.match(await stateOf(session_id), { summary: null, leased: true, runs: 3 }, 'too slow')
        await free()

        const removal = createRemoval({
          db,
          sessions,
          changes: { changed: () => undefined, removed: () => undefined },
          stopRuns: async () => undefined,
          eraseLogs: async () => undefined,
          logger: silent,
        })
        async function* hide(): AsyncGenerator<UpstreamEvent> {
          await removal.deleteSession(owner, session_id)
          yield* say('Too late.')
        }
        const late = startSummaries(hide)
        late.summaries.afterRun(asked)
        await late.summaries.settled()
        t.equal(late.requests.length, 1)
        t.match(await stateOf(session_id), { summary: null, runs: 3 })
        t.same(late.changed, [])
        t.match(
          await removal.restoreSession(owner, session_id),
          { status: 'completed' },
          'a summary is nothing it has done',
        )
      },
    )

    await t.test('a long conversation is summarized in steps that fit the model, each of whole turns', async (t) => {
      const owner = createOwner()
      const first = await called(owner, [call('a', 'look', { q: 'x'.repeat(5000) })])
      const { session_id } = first
      const second = await ask(owner, { session_id, tool_results: [{ call_id: 'a', output: 'y'.repeat(5000) }] })
      await end(second, [textPart('z'.repeat(9000))])
      const last = await ask(owner, { message: 'Message', session_id })
      await end(last)
      const { summaries, requests } = startSummaries(() => say(`S${requests.length}`), { contextTokens: 9000 })
      for (const [n, upTo] of [second.message_id, last.message_id].entries()) {
        const { upto: summarizedTo = null } = (await stateOf(session_id)) ?? {}
        summaries.afterRun({ facts: last, fold: { upTo: last.message_id, summarizedTo } })
        await summaries.settled()
        t.match(await stateOf(session_id), { summary: `S${n + 1}`, upto: upTo })
        const size = requests[n]!.messages.reduce((sum, { content }) => sum + content.length, 0)
        t.ok(size <= 9000 - 1024, `${size}`)
      }
      const [record] = requests.map(({ messages }) => messages[1]!.content.split('\n').map((line) => JSON.parse(line)))
      t.match(record, [
        { role: 'user', text: 'Look' },
        { role: 'assistant', tools: [{ name: 'look', input: `{"q":"${'x'.repeat(1494)}` }] },
        { role: 'tool', tools: [{ name: 'look', output: 'y'.repeat(1500) }] },
      ])
      t.equal(record?.length, 3, 'the end of a turn that is too long is left out')
    })
  })
}
