// Promise: the tree keeps the house rules that a machine can check, and each of those checks can fail.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import t from 'tap';
import { type Finding, RULES, type Rule, readSource, type Source } from './tidy-rules.js';

const FOLDERS = ['src', 'native', 'bench', 'test', 'transfer', 'examples'];
const FILES = ['install.cjs', 'CMakeLists.txt', 'binding.gyp'];
const CHECKED = /\.(ts|js|mjs|cjs|cc|h|py|txt|gyp)$/;
const VENDORED = /^native\/third_party\//;

function filesBelow(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true }).flatMap(entry => {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory()) return entry.name === 'node_modules' ? [] : filesBelow(path);
    return CHECKED.test(path) && !VENDORED.test(path) ? [path] : [];
  });
}

const findingsOf = (rule: Rule, source: Source): Finding[] =>
  rule.files.test(source.path) ? rule.find(source) : [];

t.test('each rule finds its planted breach and passes its clean example', async t => {
  for (const rule of RULES) {
    t.not(findingsOf(rule, readSource(...rule.breach)).length, 0, `finds: ${rule.name}`);
    t.same(findingsOf(rule, readSource(...rule.clean)), [], `passes: ${rule.name}`);
  }
});

t.test('the tree keeps the rules', async t => {
  const paths = [...FILES, ...FOLDERS.flatMap(filesBelow)];
  t.ok(paths.includes('src/index.ts') && paths.includes('native/core/reserve.cc'), 'the tree was found');
  const sources = paths.map(path => readSource(path, readFileSync(path, 'utf8')));
  for (const rule of RULES) {
    const breaches = sources.flatMap(source =>
      findingsOf(rule, source).map(({ line, message }) => `${source.path}:${line} ${message}`),
    );
    t.same(breaches, [], rule.name);
  }
});
