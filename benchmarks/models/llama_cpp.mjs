// Prefill and decode speed of a GGUF model by llama.cpp, as JSON; llama_cpp.py installs what it imports and runs it.
// node llama_cpp.mjs MODEL THREADS PROMPT_TOKENS STEPS REPEATS
import {getLlama, getModuleVersion} from "node-llama-cpp";

const [modelPath, threads, promptTokens, steps, repeats] = process.argv.slice(2).map((text, index) => index ? Number(text) : text);
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, progressLogs: false, logLevel: "error"});
const opening = performance.now();
const model = await llama.loadModel({modelPath, gpuLayers: 0});
const context = await model.createContext({contextSize: promptTokens + steps + 32, batchSize: promptTokens, threads});
const opened = performance.now();
const sequence = context.getSequence();

// Any tokens: time does not depend on them.
const prompt = Array.from({length: promptTokens}, (_, index) => 100 + (index * 37) % 300);

async function prefill() {
    await sequence.clearHistory();
    const start = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(prompt);
    return (performance.now() - start) / 1e3;
}

async function decode(count) {
    const times = [];
    let start = performance.now();
    for await (const token of sequence.evaluate([101], {temperature: 0, yieldEogToken: true})) {
        times.push((performance.now() - start) / 1e3);
        if (times.length === count) break;
        start = performance.now();
    }
    return times;
}

await prefill();
await decode(4);
const prefills = [];
for (let index = 0; index < repeats; index++) prefills.push(await prefill());
const times = await decode(steps);
console.log(JSON.stringify({
    release: llama.llamaCppRelease.release, package: await getModuleVersion(), open_seconds: (opened - opening) / 1e3, prefills,
    steps: times
}));
process.exit(0);
