// What llama.cpp, on the CPU, makes of the same prompts and text. Its activations are rounded to 8 bits: a peer, not an oracle.
// usage: node llamacpp.mjs tokenize MODEL.gguf       prompts.json, moby_dick.txt  -> tokens.json
//        node llamacpp.mjs agree MODEL.gguf          greedy.json                  -> llamacpp.json
//        node llamacpp.mjs perplexity MODEL.gguf     tokens.json, perplexity.json -> llamacpp.json
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

const [, , command, modelPath] = process.argv;
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath, gpuLayers: 0});

/** The answers after each of `ids` from the first that `wanted` accepts on; logits only of `filter(position)`. */
async function evaluate(ids, wanted, filter) {
    const context = await model.createContext({contextSize: 512, batchSize: 512});
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

/** llama.cpp's own choice at each step, after the golden ids up to it. */
async function agree() {
    const chosen = {};
    let equal = 0, steps = 0;
    for (const {name, prompt_ids, ids} of read("greedy.json")) {
        const all = [...prompt_ids, ...ids];
        const first = prompt_ids.length - 1;
        const answers = await evaluate(all.slice(0, -1), i => i >= first, () => ({tokens: [], includeTop: 1}));
        chosen[name] = answers.slice(first).map(({next}) => next.logits.keys().next().value);
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

await {tokenize, agree, perplexity}[command]();
process.exit(0);
