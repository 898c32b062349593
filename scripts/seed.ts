/**
 * Fills a migrated Postgres with sessions and messages for measuring: owners of three sizes, texts of mixed lengths in
 * four languages, the same for the same numbers. It goes around the gateway and refuses a database that has sessions in
 * it. The indexes are dropped before the load and made again after it, which is half the time; one that dies in between
 * leaves a database without them, good for nothing but to be dropped.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import postgres from 'postgres'
import { createRandom, type Random } from '../test/support/random.ts'

export interface Seed {
  readonly sessions: number
  readonly messages: number
  /** One owner has a tenth of all sessions, twenty share a fifth, and the rest have fifty each. */
  readonly owners: { readonly heavy: string; readonly middle: readonly string[]; readonly small: readonly string[] }
}

export const messagesPerSession = 10
const middleOwners = 20
const sessionsOfSmallOwner = 50
/** Rows between two looks at whether the server keeps up. */
const rowsPerChunk = 500

/** Words that searches look for, in messages of whatever language and owner. */
export const searched = {
  /** In 2 messages of 10 000. */
  rare: 'zeppelin',
  /** In 3 of 10. */
  common: 'budget',
  /** In 14 of 1000. */
  cjk: '預算',
  /** In none. */
  absent: 'quixotic',
} as const

/**
 * @param url of a database of its own, migrated
 * @param sessionCount 1000 or more
 */
export async function seed(url: string, sessionCount: number): Promise<Seed> {
  const sql = postgres(url, { max: 1, onnotice: () => undefined })
  try {
    const [{ count } = { count: 0 }] = await sql<{ count: number }[]>`select count(*)::int as count from chat_sessions`
    if (count > 0) throw new Error('There are sessions in this database already')
    const owners = ownersOf(sessionCount)
    // Of what a constraint needs none is dropped.
    const indexes = await sql<{ name: string; definition: string }[]>`
      select indexname as name, indexdef as definition from pg_indexes
      where schemaname = 'public' and tablename in ('chat_sessions', 'chat_messages')
        and not exists (select 1 from pg_constraint where conname = indexname)`
    for (const { name } of indexes) await sql`drop index ${sql(name)}`
    await loadSessions(sql, owners, sessionCount)
    await loadMessages(sql, sessionCount)
    await sql`set maintenance_work_mem = '512MB'`
    for (const { definition } of indexes) await sql.unsafe(definition)
    await sql`vacuum analyze`
    return { sessions: sessionCount, messages: sessionCount * messagesPerSession, owners }
  } finally {
    await sql.end({ timeout: 5 })
  }
}

function ownersOf(sessionCount: number): Seed['owners'] {
  const names = (kind: string, count: number) => Array.from({ length: count }, (_, index) => `bench-${kind}-${index}`)
  return {
    heavy: 'bench-heavy',
    middle: names('middle', middleOwners),
    small: names('small', Math.ceil((sessionCount * 0.7) / sessionsOfSmallOwner)),
  }
}

/** Every tenth session is the heavy owner's, two of ten a middle one's; so all owners have old and new ones. */
function ownerOf(owners: Seed['owners'], session: number): string {
  const group = Math.floor(session / 10)
  const place = session % 10
  if (place === 0) return owners.heavy
  if (place < 3) return owners.middle[(group * 2 + place) % owners.middle.length] as string
  return owners.small[(group * 7 + place - 3) % owners.small.length] as string
}

const sessionId = (session: number) => uuidOf(1, session)
const messageId = (session: number, seq: number) => uuidOf(2, session * messagesPerSession + seq)

/** Version 7, in the order of the numbers, and with a tail that nothing compresses. */
function uuidOf(table: number, row: number): string {
  const time = (0x018f_0000_0000 + row).toString(16).padStart(12, '0')
  const tail = createHash('md5').update(`${table} ${row}`).digest('hex')
  return `${time.slice(0, 8)}-${time.slice(8)}-7${tail.slice(0, 3)}-8${tail.slice(3, 6)}-${tail.slice(6, 18)}`
}

/** A session a minute, the last of them just now. */
const minutesAgo = (session: number, sessionCount: number) =>
  new Date(Date.now() - (sessionCount - session) * 60_000).toISOString()

async function loadSessions(sql: postgres.Sql, owners: Seed['owners'], sessionCount: number): Promise<void> {
  const statuses = ['completed', 'completed', 'completed', 'created', 'failed', 'killed']
  const modes = ['balanced', 'fast', 'quality', 'adaptive']
  await copy(
    sql`copy chat_sessions (
      id, user_id, kind, status, title, mode, message_count, tags, metadata, created_at, updated_at, last_activity_at
    ) from stdin`,
    function* () {
      for (let session = 0; session < sessionCount; session += 1) {
        const random = createRandom(session)
        const at = minutesAgo(session, sessionCount)
        const fields = [
          sessionId(session),
          ownerOf(owners, session),
          random.next() < 0.1 ? 'report' : 'chat',
          random.pick(statuses),
          writeText(random, 5),
          random.pick(modes),
          messagesPerSession,
          random.next() < 0.05 ? '{starred,work}' : random.next() < 0.3 ? '{work}' : '{}',
          '{"source":"bench"}',
          at,
          at,
          at,
        ]
        yield fields.join('\t')
      }
    },
  )
}

async function loadMessages(sql: postgres.Sql, sessionCount: number): Promise<void> {
  await copy(
    sql`copy chat_messages (
      id, session_id, owner, seq, parent_id, role, content, parts, status, created_at, completed_at
    ) from stdin`,
    function* () {
      const owners = ownersOf(sessionCount)
      for (let session = 0; session < sessionCount; session += 1) {
        const at = minutesAgo(session, sessionCount)
        for (let seq = 1; seq <= messagesPerSession; seq += 1) {
          const random = createRandom(session * messagesPerSession + seq)
          const isQuestion = seq % 2 === 1
          const content = writeText(random, isQuestion ? 6 + random.next() * 28 : 28 + random.next() * 84)
          const fields = [
            messageId(session, seq),
            sessionId(session),
            `user:${ownerOf(owners, session)}`,
            seq,
            seq === 1 ? '\\N' : messageId(session, seq - 1),
            isQuestion ? 'user' : 'assistant',
            content,
            JSON.stringify([{ kind: 'text', text: content }]),
            'completed',
            at,
            at,
          ]
          yield fields.join('\t')
        }
      }
    },
  )
}

/** The rows hold neither tabs nor backslashes of their own. */
async function copy(statement: postgres.PendingQuery<never[]>, rows: () => Iterable<string>): Promise<void> {
  const stream = await statement.writable()
  const done = once(stream, 'finish')
  let chunk: string[] = []
  const send = async () => {
    if (chunk.length > 0 && !stream.write(`${chunk.join('\n')}\n`)) await once(stream, 'drain')
    chunk = []
  }
  for (const row of rows()) {
    if (chunk.push(row) === rowsPerChunk) await send()
  }
  await send()
  stream.end()
  await done
}

/** About `words` words of one language, 200 characters for 35 English ones. */
function writeText(random: Random, words: number): string {
  const language = random.pick(languages)
  const text: string[] = []
  for (let word = 0; word < words; word += 1) {
    // The square makes the first words of a vocabulary the common ones, as in real texts.
    text.push(language.words[Math.floor(random.next() ** 2 * language.words.length)] as string)
  }
  const place = Math.floor(random.next() * text.length)
  if (random.next() < 0.0002) text[place] = searched.rare
  else if (random.next() < 0.3) text[place] = searched.common
  else if (random.next() < 0.02) text[place] = searched.cjk
  return text.join(language.between)
}

// Syllables make the words, so that thousands of them need no list; which words they are does not matter to an index.
const latin =
  'an be con de en for ga ho in ju ka le mo no or per qua re sta ti un ver wi ex yo zu tion ment ly ing'.split(' ')
const chinese =
  '的一是在不了有和人這中大為上個國我以要他時來用們生到作地於出就分對成會可主發年動同工也能下過子說產種面而方後多定行學法所民得經三之進著等部度家電力裡如水化高自理起小物現實加量都兩體制機當使點從業本去把性好應開它合還因由其些然前外天政四日那社義事平形相全表間樣與關各重新線內數正心反你明看原又麼利比或但質氣第向道命此變條只沒結解問意建月公無系軍很情者最立代想已通並提直題黨程展五果料象員革位入常文總次品式活設及管特件長求老頭基資邊流路級少圖山統接知較將組見計別她手角期根論運農指幾九區強放決西被幹做必戰先回則任取據處理世車'
const kana =
  'あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん会社時間予定報告書類検索結果問題今日明日'
const hangul =
  '가나다라마바사아자차카타파하고노도로모보소오조초코토포호기니디리미비시이지치키티피히구누두루무부수우주추쿠투푸후한국어문제예산보고서회의시간'

interface Language {
  readonly words: readonly string[]
  readonly between: string
}

const languages: readonly Language[] = [
  { words: makeWords(latin, 4000, 1, 4), between: ' ' },
  { words: makeWords(latin, 4000, 1, 4), between: ' ' },
  { words: makeWords([...chinese], 3000, 1, 3), between: '' },
  { words: makeWords([...kana], 2000, 1, 4), between: '' },
  { words: makeWords([...hangul], 2000, 1, 4), between: ' ' },
]

function makeWords(syllables: readonly string[], count: number, shortest: number, longest: number): readonly string[] {
  const random = createRandom(syllables.length)
  return Array.from({ length: count }, () => {
    const length = shortest + Math.floor(random.next() * (longest - shortest + 1))
    return Array.from({ length }, () => random.pick(syllables)).join('')
  })
}
