// What llama.cpp, on the CPU, makes of the same prompts and text. Its activations are rounded to 8 bits: a peer, not an oracle.
// usage: node llamacpp.mjs tokenize MODEL.gguf       prompts.json, moby_dick.txt  -> tokens.json
//        node llamacpp.mjs agree MODEL.gguf          greedy.json                  -> llamacpp.json
//        node llamacpp.mjs perplexity MODEL.gguf     tokens.json, perplexity.json -> llamacpp.json
//        node llamacpp.mjs adapter MODEL.gguf ADAPTER.gguf     tokens.json        -> llamacpp.json
import {readFileSync, writeFileSync} from "node:fs";
import {getLlama} from "node-llama-cpp";

const here = name => new URL(name, import.meta.url);
const read = name => JSON.parse(readFileSync(here(name), "utf8"));
const write = (name, value) => writeFileSync(here(name), JSON.stringify(value, null, 1).replace(/\n +(?=-?\d)|(?<=\d)\n +(?=\])/g, "") + "\n");
const update = part => {
    let old = {};
    try { old = read("llamacpp.json"); } catch (error) { if (error.code !== "ENOENT") throw error; }
    write("llamacpp.json", {...old, ...part});
};

const [, , command, modelPath, adapterPath] = process.argv;
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath, gpuLayers: 0});
// One thread: several wait for each other by spinning, which on a busy machine takes a hundred times as long.
const contextOptions = {contextSize: 512, batchSize: 512, threads: 1};

/** The answers after each of `ids` from the first that `wanted` accepts on; logits only of `filter(position)`. */
async function evaluate(ids, wanted, filter) {
    const context = await model.createContext(contextOptions);
    const input = ids.map((id, i) => wanted(i)
        ? [id, {generateNext: {logits: {filter: filter(i)}, totalLogitWeight: true, options: {temperature: 0}}}]
        : id);
    const answers = await context.getSequence().controlledEvaluate(input);
    await context.dispose();
    return answers;
}

function tokenize() {
    const ids = text => [...model.tokenize(text, true)];
    write("tokens.json", {
        prompts: Object.fromEntries(read("prompts.json").map(({name, text}) => [name, ids(text)])),
        moby_dick: ids(readFileSync(here("moby_dick.txt"), "utf8")),
    });
}

/** llama.cpp's own choice at each step, given `ids` up to it. */
async function choices(prompt, ids) {
    const first = prompt.length - 1;
    const all = [...prompt, ...ids].slice(0, -1);
    const answers = await evaluate(all, i => i >= first, () => ({tokens: [], includeTop: 1}));
    return answers.slice(first).map(({next}) => next.logits.keys().next().value);
}

/** Its choices on the golden ids. */
async function agree() {
    const chosen = {};
    let equal = 0, steps = 0;
    for (const {name, prompt_ids, ids} of read("greedy.json")) {
        chosen[name] = await choices(prompt_ids, ids);
        equal += chosen[name].filter((id, i) => id === ids[i]).length;
        steps += ids.length;
    }
    update({greedy: {equal, steps, ids: chosen}});
    console.log(`llama.cpp agrees on ${equal} of ${steps} steps`);
}

/** llama.cpp's definition, on the windows that perplexity.json scored. */
async function perplexity() {
    const {moby_dick} = read("tokens.json");
    const {window, windows, perplexity: exact} = read("perplexity.json");
    const nll = [];
    for (let start = 0; start < windows * window; start += window) {
        const ids = moby_dick.slice(start, start + window);
        const scored = i => i >= window / 2 && i < window - 1;
        const answers = await evaluate(ids, scored, i => ({tokens: [ids[i + 1]], includeTop: 1}));
        const scores = answers.flatMap(({next}, i) => {
            const top = Math.max(...next.logits.values());
            return [top + Math.log(next.totalLogitWeight) - next.logits.get(ids[i + 1])];
        });
        nll.push(scores.reduce((a, b) => a + b) / scores.length);
    }
    const own = Math.exp(nll.reduce((a, b) => a + b) / nll.length);
    update({perplexity: {perplexity: own, nll}});
    console.log(`llama.cpp's perplexity ${own.toFixed(4)}, ${((own / exact - 1) * 100).toFixed(3)} % from the exact ${exact.toFixed(4)}`);
}

/** Its greedy ids under an adapter that we wrote. Without it, other ids must follow: else the agreement says nothing. */
async function adapter() {
    const {prompts} = read("tokens.json");
    const ids = {};
    let same = 0, steps = 0;
    for (const name of ["prose", "list", "dialogue", "question", "rewrite"]) {
        const context = await model.createContext({...contextOptions, lora: {adapters: [{filePath: adapterPath}]}});
        ids[name] = [];
        for await (const id of context.getSequence().evaluate(prompts[name], {temperature: 0, yieldEogToken: true})) {
            if (ids[name].push(id) === 32) break;
        }
        await context.dispose();
        const base = await choices(prompts[name], ids[name]);
        same += base.filter((id, i) => id === ids[name][i]).length;
        steps += base.length;
    }
    console.log(`llama.cpp without the adapter agrees on ${same} of ${steps} steps`);
    if (same > 0.8 * steps) throw new Error("the adapter changes too little");
    update({adapter: {ids}});
}

await {tokenize, agree, perplexity, adapter}[command]();
process.exit(0);
