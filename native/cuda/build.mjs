/**
 * Compiles native/cuda/kernels.cu into kernels.inc: `node native/cuda/build.mjs [--check]`. Needs nvcc and ptxas of CUDA 12.8
 * or later: NVCC and PTXAS name them, else CUDA_HOME/bin, else the search path. Where they are not, it says so and exits
 * with 0. `--check` compares what is committed: the sources it was made from and its architectures always, its bytes where
 * the compilers are those that made it; and our declarations of the driver against its header, where CUDA_INCLUDE or
 * CUDA_HOME/include has cuda.h.
 *
 * The PTX says that it is of version 7.1, which drivers from CUDA 11.1 on take: newer compilers name a newer version whether
 * or not the text needs it, and ptxas refuses a text that does. Machine code is made from that same text, one per architecture.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';

const ARCHITECTURES = [80, 86, 89, 90, 100, 120];
const PTX_VERSION = '7.1';
const SOURCES = ['kernels.cu', 'index_map.h', 'build.mjs'];
const here = fileURLToPath(new URL('.', import.meta.url));
const target = `${here}kernels.inc`;
const isCheck = process.argv.includes('--check');

const sourceHash = () => {
  const hash = createHash('sha256');
  for (const name of SOURCES) hash.update(readFileSync(here + name));
  return hash.digest('hex');
};

function toolOf(variable, name) {
  const home = process.env.CUDA_HOME;
  const inHome = home === undefined ? undefined : `${home}/bin/${name}`;
  const path = process.env[variable] ?? (inHome !== undefined && existsSync(inHome) ? inHome : name);
  const asked = spawnSync(path, ['--version'], { encoding: 'utf8', timeout: 60_000 });
  if (asked.status !== 0) return null;
  const version = /release [\d.]+, V([\d.]+)/.exec(asked.stdout)?.[1] ?? 'of unknown version';
  return { path, version: `${name} ${version}` };
}

function run(tool, args) {
  const result = spawnSync(tool.path, args, { encoding: 'utf8', timeout: 300_000, cwd: here });
  if (result.status === 0) return;
  console.error(`${tool.path} ${args.join(' ')}\n${result.stdout}${result.stderr}`);
  process.exit(1);
}

/** A name, the bytes and whether they are text for a driver to compile. */
function compile(nvcc, ptxas) {
  const folder = mkdtempSync(`${tmpdir()}/millrace-kernels-`);
  try {
    const ptx = `${folder}/kernels.ptx`;
    const least = ARCHITECTURES[0];
    run(nvcc, ['-std=c++20', '-O3', '-ptx', `-arch=compute_${least}`, 'kernels.cu', '-o', ptx]);
    const text = readFileSync(ptx, 'utf8')
      .replace(/^\/\/.*\n/gm, '')
      .replace(/^\.version .*$/m, `.version ${PTX_VERSION}`);
    writeFileSync(ptx, text);
    const images = ARCHITECTURES.map(architecture => {
      const cubin = `${folder}/${architecture}.cubin`;
      run(ptxas, ['-O3', `-arch=sm_${architecture}`, ptx, '-o', cubin]);
      return { architecture, isPtx: false, bytes: readFileSync(cubin) };
    });
    // A text ends with a zero.
    images.push({ architecture: least, isPtx: true, bytes: Buffer.from(`${text}\0`) });
    return images;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const nameOf = ({ architecture, isPtx }) => `${isPtx ? 'kPtx' : 'kCubin'}${architecture}`;

function words(bytes) {
  const padded = Buffer.concat([bytes, Buffer.alloc((8 - (bytes.length % 8)) % 8)]);
  const out = [];
  for (let at = 0; at < padded.length; at += 8) out.push(padded.readBigUInt64LE(at).toString(16));
  return out.map(word => `0x${word}`).join(',');
}

function write(images, tools) {
  const arrays = images.map(
    image => `alignas(16) inline constexpr uint64_t ${nameOf(image)}[] = {${words(image.bytes)}};`,
  );
  const table = images.map(
    image => `    {${image.architecture}, ${image.isPtx}, ${image.bytes.length}, ${nameOf(image)}},`,
  );
  return [
    '// Made by native/cuda/build.mjs; not to be edited.',
    `// sources ${sourceHash()}`,
    `// compilers ${tools}`,
    ...arrays,
    'inline constexpr KernelImage kKernelImages[] = {',
    ...table,
    '};',
    '',
  ].join('\n');
}

function fail(words) {
  console.error(words);
  process.exit(1);
}

/** Compiles native/test/cuda/header/header_check.cc, whose asserts compare. */
function checkHeader() {
  const home = process.env.CUDA_HOME;
  const folder = process.env.CUDA_INCLUDE ?? (home === undefined ? '' : `${home}/include`);
  if (!existsSync(`${folder}/cuda.h`)) {
    console.log('cuda.h is not here: our declarations are not compared');
    return;
  }
  const compiler = { path: process.env.CXX ?? 'c++' };
  const source = '../test/cuda/header/header_check.cc';
  run(compiler, ['-std=c++20', '-fsyntax-only', '-isystem', folder, source]);
  console.log(`our declarations are those of ${folder}/cuda.h`);
}

const committed = existsSync(target) ? readFileSync(target, 'utf8') : '';
if (isCheck) {
  if (!committed.includes(`// sources ${sourceHash()}\n`))
    fail('kernels.inc was made from other sources: node native/cuda/build.mjs makes it anew');
  for (const architecture of ARCHITECTURES)
    if (!committed.includes(`kCubin${architecture}[]`)) fail(`kernels.inc has no sm_${architecture}`);
  checkHeader();
}
const nvcc = toolOf('NVCC', 'nvcc');
const ptxas = toolOf('PTXAS', 'ptxas');
if (nvcc === null || ptxas === null) {
  const absent = nvcc === null ? 'nvcc' : 'ptxas';
  console.log(`${absent} is not here (NVCC, PTXAS and CUDA_HOME say where to look): nothing is compiled`);
  process.exit(0);
}
const tools = `${nvcc.version}, ${ptxas.version}`;
const made = write(compile(nvcc, ptxas), tools);
if (!isCheck) {
  writeFileSync(target, made);
  console.log(`${target}: ${made.length} bytes, ${tools}`);
} else if (!committed.includes(`// compilers ${tools}\n`)) {
  console.log(`compiled by ${tools}; the committed bytes are of other compilers and are not compared`);
} else if (made === committed) {
  console.log(`same bytes by ${tools}`);
} else {
  fail(`other bytes by the same compilers, ${tools}`);
}
