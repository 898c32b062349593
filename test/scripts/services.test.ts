/** How the test command picks its services, without touching any. */
import t from 'tap'
import { choose, choosePostgresFolder, explainMissing, openServices, refuse } from '../../scripts/services.ts'

t.test('given, running, installed, install: in this order', async (t) => {
  const all = { given: 'g', running: 'r', installed: 'i', canInstall: true }
  t.strictSame(choose(all), { kind: 'given', at: 'g' })
  t.strictSame(choose({ ...all, given: undefined }), { kind: 'running', at: 'r' })
  t.strictSame(choose({ ...all, given: undefined, running: undefined }), { kind: 'installed', at: 'i' })
  const nothing = { given: undefined, running: undefined, installed: undefined }
  t.strictSame(choose({ ...nothing, canInstall: true }), { kind: 'install' })
  t.strictSame(choose({ ...nothing, canInstall: false }), { kind: 'impossible' })
})

t.test('what is missing is said with one command for all of it, and the explicit ways without', async (t) => {
  const text = explainMissing(['postgres', 'chromium'])
  t.match(text, 'apt-get install -y --no-install-recommends postgresql chromium')
  t.match(text, 'TEST_EMBEDDED_ONLY=1')
  t.match(text, 'TEST_WITHOUT_BROWSER=1')
  t.match(text, 'TEST_DATABASE_URL')
  t.notMatch(text, 'redis')
  t.notMatch(explainMissing(['redis']), 'TEST_WITHOUT_BROWSER')
})

t.test(
  'Postgres is taken from PATH, else from the newest version; a folder without initdb does not count',
  async (t) => {
    const folders = ['/bin', '/usr/lib/postgresql/9/bin', '/usr/lib/postgresql/16/bin', '/usr/lib/postgresql/15/bin']
    const installedIn =
      (...places: readonly string[]) =>
      (path: string): boolean =>
        places.some((place) => path.startsWith(place))
    t.equal(choosePostgresFolder(folders, installedIn('/usr/lib')), '/usr/lib/postgresql/16/bin')
    t.equal(choosePostgresFolder(folders, installedIn('/bin', '/usr/lib')), '/bin')
    t.equal(
      choosePostgresFolder(folders, (path) => path === '/bin/postgres'),
      undefined,
    )
  },
)

t.test('a service that is too old or lets us create nothing is passed over with its reason', async (t) => {
  t.equal(refuse('postgres', { version: 16, mayCreate: true }), undefined)
  t.match(refuse('postgres', { version: 12, mayCreate: true }), /older/)
  t.match(refuse('postgres', { version: 16, mayCreate: false }), /may not create/)
  t.match(refuse('redis', { version: 6.0, mayCreate: true }), /older/)
})

t.test('an address that was given and does not answer stops the run, and never shows its password', async (t) => {
  // Port 9 is discard: nothing that speaks Postgres or Redis listens there.
  const env = {
    TEST_DATABASE_URL: 'postgres://someone:secret@127.0.0.1:9/x',
    TEST_REDIS_URL: 'redis://:secret@127.0.0.1:9',
  }
  const signal = new AbortController().signal
  for (const need of ['postgres', 'redis'] as const) {
    const error = await openServices(env, [need], () => undefined, signal).then(
      () => new Error('it opened'),
      (reason: Error) => reason,
    )
    t.match(error.message, /^TEST_(DATABASE|REDIS)_URL is set, and nothing there lets us in$/)
    t.notMatch(error.message, 'secret')
  }
})
