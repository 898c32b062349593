/** kill -9 on Postgres: kill.ts says what must hold. */
import { databases } from '../support/database.ts'
import { testKills } from './kill.ts'

testKills('postgres', databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: no Postgres')
