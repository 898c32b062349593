import t from 'tap'
import { judge, longHistoryFrom } from '../../src/upstream/adaptive.ts'

const program = ['```ts', 'const x = f(1)', '```'].join('\n')

t.test('a message is judged by its points, and the reasons say which', async (t) => {
  const table: readonly (readonly [text: string, profile: string, reasons: string])[] = [
    ['', 'fast', 'plain'],
    ['Hi', 'fast', 'plain'],
    ['What is the capital of France?', 'fast', 'plain'],
    ['Really? Sure?', 'fast', 'plain'],
    ['Really? Sure? And then?', 'balanced', 'questions'],
    ['本当ですか？いつ？どこ？', 'balanced', 'questions'],
    ['Why is the sky blue?', 'balanced', 'reasoning'],
    ['WHY, why, why', 'balanced', 'reasoning'],
    ['Compare TCP with UDP and explain the trade-offs', 'balanced', 'reasoning'],
    ['Warum ist der Himmel blau?', 'balanced', 'reasoning'],
    ['Erkläre das bitte', 'balanced', 'reasoning'],
    ['Pourquoi le ciel est-il bleu ?', 'balanced', 'reasoning'],
    ['¿Por qué es azul el cielo?', 'balanced', 'reasoning'],
    ['Почему небо голубое?', 'balanced', 'reasoning'],
    ['为什么天空是蓝色的', 'balanced', 'reasoning'],
    ['空が青いのはなぜ', 'balanced', 'reasoning'],
    ['x^2 + 3 = 12', 'balanced', 'maths'],
    ['∑ 1/n', 'balanced', 'maths'],
    [String.raw`\frac{1}{2}`, 'balanced', 'maths'],
    ['const x = 1', 'balanced', 'code'],
    ['def area(r):', 'balanced', 'code'],
    ['from os import path', 'balanced', 'code'],
    ['SELECT id FROM runs', 'balanced', 'code'],
    ['<div>', 'balanced', 'code'],
    ['f();', 'balanced', 'code'],
    ['a'.repeat(399), 'fast', 'plain'],
    ['a'.repeat(400), 'balanced', 'long'],
    ['字'.repeat(134), 'balanced', 'long'],
    ['a'.repeat(2000), 'balanced', 'long'],
    [program, 'balanced', 'code'],
    [`Why does this fail?\n${program}`, 'quality', 'code reasoning'],
    [`${program}\n${'a'.repeat(400)}`, 'quality', 'code long'],
    [`Prove that x^2 > 0 and explain it`, 'quality', 'maths reasoning'],
    [`${'a'.repeat(2000)} Why?`, 'quality', 'reasoning long'],
  ]
  for (const [text, profile, reasons] of table) {
    t.strictSame(judge(text, 0), { profile, reasons: reasons.split(' ') }, JSON.stringify(text.slice(0, 40)))
  }
})

t.test('words within words, and prose that looks like a program, count for nothing', async (t) => {
  for (const text of [
    'The planet is company to a plane, explicit and designer made',
    'let me know about public transport',
    'import taxes and class actions',
    'one thing;\nanother thing;',
    'from here to there',
  ]) {
    t.strictSame(judge(text, 0), { profile: 'fast', reasons: ['plain'] }, text)
  }
})

t.test('a long session adds a point, from the eighth message on', async (t) => {
  t.strictSame(judge('Hi', longHistoryFrom - 1), { profile: 'fast', reasons: ['plain'] })
  t.strictSame(judge('Hi', longHistoryFrom), { profile: 'balanced', reasons: ['history'] })
  t.strictSame(judge(program, longHistoryFrom), { profile: 'quality', reasons: ['code', 'history'] })
  t.strictSame(judge('Why?', 1000), { profile: 'balanced', reasons: ['reasoning', 'history'] })
})

t.test('the longest message is judged by its beginning', async (t) => {
  const letters = 'a'.repeat(20_000)
  t.strictSame(judge(`${letters} why, explain`, 0).reasons, ['long'])
  t.strictSame(judge(`why, explain ${letters}`, 0).reasons, ['reasoning', 'long'])
})
