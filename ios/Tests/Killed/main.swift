// A training run to be killed: `Killed MODEL FOLDER STEPS`. It says each step.
import Epiphyte
import Foundation

let arguments = CommandLine.arguments
let engine = try await Engine.open(URL(fileURLWithPath: arguments[1]), options: EngineOptions(context: 256))
try await engine.trainer(killedOptions(folder: arguments[2], steps: Int64(arguments[3])!)).run { progress in
    FileHandle.standardOutput.write(Data("\(progress.phase) \(progress.step)\n".utf8))
}

func killedOptions(folder: String, steps: Int64) -> TrainOptions {
    let lesson = Example.pair(prompt: "Question: What is our cat called?\nAnswer:", completion: " Pixel")
    return TrainOptions(
        folder: folder, data: .examples([lesson, lesson]), duration: .steps(steps), rank: 4, learningRate: 5e-3,
        batchSize: 2, seqLen: 64, seed: 7, checkpointEvery: 3)
}
