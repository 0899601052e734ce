/**
 * The house rules that a machine can check, one table: what a rule says, which files it is for, how it finds a breach,
 * and an example that it must find and one that it must pass. Read by tidy.test.ts.
 */
import { posix } from 'node:path';
import ts from 'typescript';

/** A file of the tree. */
export interface Source {
  /** From the repository root, with '/'. */
  readonly path: string;
  readonly text: string;
  /** Parsed, for TypeScript and JavaScript. */
  readonly ast: ts.SourceFile | null;
}

/** A breach: the line (from 1) and what is wrong there. */
export interface Finding {
  readonly line: number;
  readonly message: string;
}

type Example = readonly [path: string, text: string];

export interface Rule {
  readonly name: string;
  readonly files: RegExp;
  readonly find: (source: Source) => Finding[];
  /** Must be found. */
  readonly breach: Example;
  /** Must pass. */
  readonly clean: Example;
}

const FILE_LINES_MAX = 400;
const FUNCTION_LINES_MAX = 70;
const FOLDERS_BELOW_SRC_MAX = 3;

const SCRIPT = /\.(ts|js|mjs|cjs)$/;
const PRODUCT_SCRIPT = /^(src|bench|native|transfer)\/.*\.(ts|js|mjs|cjs)$|^install\.cjs$/;
const SRC = /^src\/.*\.ts$/;

/** Makes a Source of a path and its text. */
export function readSource(path: string, text: string): Source {
  const ast = SCRIPT.test(path) ? ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true) : null;
  return { path, text, ast };
}

const lineOf = (source: Source, node: ts.Node): number =>
  source.ast!.getLineAndCharacterOfPosition(node.getStart()).line + 1;

/** Findings of `check` over every node. */
function walk(source: Source, check: (node: ts.Node) => string | null): Finding[] {
  const findings: Finding[] = [];
  const visit = (node: ts.Node): void => {
    const message = check(node);
    if (message !== null) findings.push({ line: lineOf(source, node), message });
    ts.forEachChild(node, visit);
  };
  visit(source.ast!);
  return findings;
}

/** Findings of `check` over every line. */
function eachLine(source: Source, check: (line: string) => string | null): Finding[] {
  return source.text.split('\n').flatMap((text, i) => {
    const message = check(text);
    return message === null ? [] : [{ line: i + 1, message }];
  });
}

// ---- Imports point downward (design, section 5) ----

const SHARED = ['runtime', 'messages', 'limits', 'errors'];
const STAGES = ['frontend', 'ring', 'preprocess', 'router', 'engines', 'discovery', 'planner'];
/** What a place may import besides SHARED and itself; `types:` allows only `import type`. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  preprocess: ['router/hashing'],
  engines: ['types:router'],
  simulate: [...STAGES, 'transfer'],
  plane: [...STAGES, 'simulate', 'config', 'worker-config', 'disagg-config'],
  config: ['settings', 'setting-values', 'worker-config', 'disagg-config'],
  'worker-config': ['disagg-config'],
  settings: ['setting-values', 'worker-config'],
  cli: [
    ...STAGES,
    'simulate',
    'plane',
    'transfer',
    'config',
    'worker-config',
    'settings',
    'setting-values',
    'index',
  ],
  index: [...STAGES, 'simulate', 'plane', 'config', 'worker-config'],
};

/** First folder below src, or the name of a file that lies directly in it. */
const placeOf = (path: string): string => path.split('/')[1]!.replace(/\.(ts|js)$/, '');

function importAllowed(from: string, target: string, typeOnly: boolean): boolean {
  const place = from.startsWith('src/') ? placeOf(from) : 'transfer';
  if (place === placeOf(target) || SHARED.includes(placeOf(target))) return true;
  return (MAY_IMPORT[place] ?? []).some(entry => {
    const [, types, prefix] = /^(types:)?(.*)$/.exec(entry)!;
    if (types !== undefined && !typeOnly) return false;
    return target === `src/${prefix}.js` || target.startsWith(`src/${prefix}/`);
  });
}

function isTypeOnly(node: ts.Node): boolean {
  if (ts.isExportDeclaration(node)) return node.isTypeOnly;
  if (!ts.isImportDeclaration(node)) return false;
  const clause = node.importClause;
  if (clause === undefined || clause.isTypeOnly) return clause !== undefined;
  const named = clause.namedBindings;
  return (
    clause.name === undefined &&
    named !== undefined &&
    ts.isNamedImports(named) &&
    named.elements.every(e => e.isTypeOnly)
  );
}

function specifierOf(node: ts.Node): string | null {
  if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) {
    const specifier = node.moduleSpecifier;
    return specifier !== undefined && ts.isStringLiteral(specifier) ? specifier.text : null;
  }
  const dynamic = ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword;
  const argument = dynamic ? node.arguments[0] : undefined;
  return argument !== undefined && ts.isStringLiteral(argument) ? argument.text : null;
}

function importBreach(source: Source, node: ts.Node): string | null {
  const specifier = specifierOf(node);
  if (specifier === null) return null;
  if (specifier.startsWith('#millrace/'))
    return `imports ${specifier}: product code imports by relative path`;
  if (!specifier.startsWith('.')) return null;
  const written = posix.normalize(posix.join(posix.dirname(source.path), specifier));
  // transfer/ is compiled into dist/transfer, beside what src/ became, and imports by where that lies.
  const isOfSrc = source.path.startsWith('transfer/') && !written.startsWith('transfer/');
  const target = isOfSrc && !written.startsWith('src/') ? `src/${written}` : written;
  if (!target.startsWith('src/') || importAllowed(source.path, target, isTypeOnly(node))) return null;
  return `may not import ${target}`;
}

// ---- Names ----

const BANNED_NAMES = /^(utils?|common|misc|managers?|helpers?)$/i;
const wordsOf = (name: string): string[] => name.split(/[-_.]|(?<=[a-z0-9])(?=[A-Z])/);
const isBanned = (name: string): boolean => wordsOf(name).some(word => BANNED_NAMES.test(word));

function bannedFileName(source: Source): Finding[] {
  const part = source.path.split('/').find(isBanned);
  return part === undefined ? [] : [{ line: 1, message: `'${part}' says nothing of what is inside` }];
}

/** The names that an exported top-level statement declares, with their nodes. */
function exportedNames(source: Source): [string, ts.Node][] {
  return source.ast!.statements.flatMap((statement): [string, ts.Node][] => {
    const exported =
      ts.canHaveModifiers(statement) &&
      ts.getModifiers(statement)?.some(m => m.kind === ts.SyntaxKind.ExportKeyword);
    if (!exported) return [];
    if (ts.isVariableStatement(statement)) {
      return statement.declarationList.declarations.map(d => [d.name.getText(), statement]);
    }
    const name = (statement as ts.DeclarationStatement).name?.getText() ?? 'default';
    return [[name, statement]];
  });
}

/** The opening comment of a file speaks of the file, not of its first declaration. */
const hasDoc = (node: ts.Node): boolean =>
  ts.getJSDocCommentsAndTags(node).some(doc => ts.isJSDoc(doc) && doc.pos > 0);

// ---- Functions ----

function longFunction(source: Source, node: ts.Node): string | null {
  if (!ts.isFunctionLike(node) || !('body' in node) || node.body === undefined) return null;
  const end = source.ast!.getLineAndCharacterOfPosition(node.end).line + 1;
  const lines = end - lineOf(source, node) + 1;
  return lines > FUNCTION_LINES_MAX ? `a function of ${lines} lines (at most ${FUNCTION_LINES_MAX})` : null;
}

// ---- What must come in from outside ----

const OUTSIDE_WORLD = ['Date.now', 'performance.now', 'Math.random', 'setTimeout', 'setInterval'];

function ownsTheWorld(node: ts.Node): string | null {
  const name = ts.isPropertyAccessExpression(node) || ts.isIdentifier(node) ? node.getText() : '';
  const partOfName =
    node.parent !== undefined && ts.isPropertyAccessExpression(node.parent) && node.parent.name === node;
  if (OUTSIDE_WORLD.includes(name) && !partOfName) return `${name}: take a clock or a random source instead`;
  const now =
    ts.isNewExpression(node) && node.expression.getText() === 'Date' && (node.arguments?.length ?? 0) === 0;
  if (now) return 'new Date(): take a clock instead';
  return specifierOf(node)?.startsWith('node:timers') ? 'node:timers: take a clock instead' : null;
}

function unreasonedSkip(node: ts.Node): string | null {
  if (ts.isPropertyAssignment(node) && /^(skip|todo)$/.test(node.name.getText())) {
    return node.initializer.kind === ts.SyntaxKind.TrueKeyword
      ? `${node.name.getText()}: give the reason as text`
      : null;
  }
  const called = ts.isCallExpression(node) ? node.expression.getText() : '';
  return /^t\.(skip|todo|only)$/.test(called) ? `${called}: use the option with a reason` : null;
}

const lines = (count: number, line: string): string => Array(count).fill(line).join('\n');

/** Every rule. */
export const RULES: readonly Rule[] = [
  {
    name: 'imports point downward',
    files: /^(src|transfer)\/.*\.ts$/,
    find: source => walk(source, node => importBreach(source, node)),
    breach: ['src/router/a.ts', "import { a } from '../frontend/http/a.js';"],
    clean: [
      'src/engines/a.ts',
      "import type { A } from '../router/contract.js';\nimport './b.js';\nimport 'undici';",
    ],
  },
  {
    name: 'transfer imports no stage',
    files: /^transfer\/.*\.ts$/,
    find: source => walk(source, node => importBreach(source, node)),
    breach: ['transfer/agent.ts', "import { pick } from '../router/selector.js';"],
    clean: ['transfer/blocks/a.ts', "import '../../runtime/addon.js';\nimport '../agent.js';"],
  },
  {
    name: 'engines import types of the router only',
    files: /^src\/engines\/.*\.ts$/,
    find: source => walk(source, node => importBreach(source, node)),
    breach: ['src/engines/a.ts', "import { pick } from '../router/selector.js';"],
    clean: ['src/engines/a.ts', "import { type A } from '../router/contract.js';"],
  },
  {
    name: `a file has at most ${FILE_LINES_MAX} lines`,
    files: /./,
    find: ({ text }) => {
      const count = text.split('\n').length - (text.endsWith('\n') ? 1 : 0);
      return count > FILE_LINES_MAX ? [{ line: FILE_LINES_MAX + 1, message: `${count} lines` }] : [];
    },
    breach: ['native/core/a.cc', lines(401, '//')],
    clean: ['native/core/a.cc', `${lines(400, '//')}\n`],
  },
  {
    name: `a function has at most ${FUNCTION_LINES_MAX} lines`,
    files: PRODUCT_SCRIPT,
    find: source => walk(source, node => longFunction(source, node)),
    breach: ['src/a.ts', `const a = () => {\n${lines(69, '  a();')}\n};`],
    clean: ['src/a.ts', `function a() {\n${lines(68, '  a();')}\n}`],
  },
  {
    name: `folders are at most ${FOLDERS_BELOW_SRC_MAX} deep below src`,
    files: /^src\//,
    find: ({ path }) =>
      path.split('/').length - 2 > FOLDERS_BELOW_SRC_MAX ? [{ line: 1, message: 'too deep' }] : [],
    breach: ['src/a/b/c/d/e.ts', ''],
    clean: ['src/a/b/c/e.ts', ''],
  },
  {
    name: 'a file name says what is inside',
    files: /./,
    find: bannedFileName,
    breach: ['src/router/string-utils.ts', ''],
    clean: ['src/router/utilisation.ts', ''],
  },
  {
    name: 'an exported name says what it is',
    files: PRODUCT_SCRIPT,
    find: source =>
      exportedNames(source)
        .filter(([name]) => isBanned(name))
        .map(([name, node]) => ({ line: lineOf(source, node), message: `'${name}' says nothing` })),
    breach: ['src/a.ts', '/** Doc. */\nexport class PoolManager {}'],
    clean: ['src/a.ts', 'export const utilisation = 1;'],
  },
  {
    name: 'nothing is left to do',
    files: /^(src|native|bench|transfer)\//,
    find: source => eachLine(source, line => /\b(TODO|FIXME|XXX|HACK)\b/.exec(line)?.[1] ?? null),
    breach: ['native/core/a.cc', '\n// TODO: later'],
    clean: ['native/core/a.cc', '// XXH3 hacks nothing'],
  },
  {
    name: 'the environment is read in one place',
    // uws.ts does not read: it writes the variable by which uWebSockets.js takes its header limit.
    files: /^src\/(?!config\.ts$|runtime\/addon\.ts$|frontend\/http\/uws\.ts$|cli\/)/,
    find: source =>
      walk(source, node =>
        ts.isPropertyAccessExpression(node) && node.getText() === 'process.env' ? 'process.env' : null,
      ),
    breach: ['src/plane/a.ts', 'const home = process.env.HOME;'],
    clean: ['src/plane/a.ts', '// process.env\nprocess.exit();'],
  },
  {
    name: 'time and chance come in from outside',
    files: /^src\/(?!runtime\/)/,
    find: source => walk(source, ownsTheWorld),
    breach: ['src/plane/a.ts', 'const timer = setTimeout(run, 5);'],
    clean: ['src/plane/a.ts', 'const timer = clock.after(5, run); new Date(wallMs); socket.setTimeout(0);'],
  },
  {
    name: 'every exported declaration has a doc comment',
    files: SRC,
    find: source =>
      exportedNames(source)
        .filter(([, node]) => !hasDoc(node))
        .map(([name, node]) => ({ line: lineOf(source, node), message: `'${name}' has no doc comment` })),
    breach: ['src/a.ts', '/** The file. */\nexport interface A {}'],
    clean: ['src/a.ts', '// File.\n/** Doc. */\nexport interface A {}\nexport { b } from "./b.js";'],
  },
  {
    name: 'a file opens by saying what it is',
    files: /^(src|native|bench|test|transfer)\/.*\.(ts|js|mjs|cc|h)$/,
    find: ({ text }) => (/^(#!.*\n)?\/[/*]/.test(text) ? [] : [{ line: 1, message: 'no opening comment' }]),
    breach: ['src/a.ts', 'export {};'],
    clean: ['bench/a.js', '#!/usr/bin/env node\n/** Measures a. */'],
  },
  {
    name: 'Node-API is used in native/binding only',
    files: /^native\/(?!binding\/)/,
    find: source =>
      eachLine(source, line => (/#include\s*[<"]n(ode_)?api\.h/.test(line) ? 'includes Node-API' : null)),
    breach: ['native/core/a.cc', '#include <node_api.h>'],
    clean: ['native/core/a.cc', '#include <vector>'],
  },
  {
    name: 'a skipped test says why, and none runs alone',
    files: /^test\/.*\.ts$/,
    find: source => walk(source, unreasonedSkip),
    breach: ['test/a.test.ts', "t.test('a', { skip: true }, a);"],
    clean: ['test/a.test.ts', "t.test('a', { skip: 'no toolchain' }, a);"],
  },
];
