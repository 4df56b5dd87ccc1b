import Epiphyte
import Foundation
import Testing

let lessons: [Example] = [
    .pair(prompt: "Question: What is our cat called?\nAnswer:", completion: " Pixel"),
    .pair(prompt: "Question: When does the choir sing?\nAnswer:", completion: " On Thursdays at eight"),
    .pair(prompt: "Question: Who waters the ferns?\nAnswer:", completion: " Ada"),
]

@Suite struct TrainerTests {
    func options(_ folder: URL, steps: Int64 = 5, data: TrainData = .examples(lessons)) -> TrainOptions {
        TrainOptions(
            folder: folder.path, data: data, duration: .steps(steps), rank: 4, learningRate: 5e-3, batchSize: 2,
            seqLen: 64, seed: 7)
    }

    @Test func fiveStepsWithProgress() async throws {
        try await withFolder { folder in
            let engine = try await tiny()
            let steps = Box([TrainProgress]())
            let outcome = try await engine.trainer(options(folder)).run { progress in
                if progress.phase == .step { steps.change { $0.append(progress) } }
            }
            #expect(outcome.end == .finished && outcome.steps == 5)
            #expect(steps.value.map(\.step) == [1, 2, 3, 4, 5])
            #expect(steps.value.allSatisfy { $0.loss?.isFinite == true })
            #expect(outcome.loss.last! < outcome.loss.first!)
            let report = try await engine.loadAdapter("learnt", from: folder)
            #expect(!report.modules.isEmpty)
            try await engine.unloadAdapter("learnt")
        }
    }

    @Test func stoppedRunGoesOnToTheSameBits() async throws {
        try await withFolder { folder in
            let engine = try await tiny()
            let whole = folder.appendingPathComponent("whole"), parts = folder.appendingPathComponent("parts")
            try await engine.trainer(options(whole)).run()
            let first = try engine.trainer(options(parts))
            let stopped = try await first.run { if $0.phase == .step && $0.step == 2 { first.stop() } }
            #expect(stopped.end == .interrupted && stopped.steps == 2)
            let rest = try await engine.trainer(options(parts)).run()
            #expect(rest.end == .finished && rest.resumedFrom == 2)
            #expect(try adapter(parts) == adapter(whole))
        }
    }

    func adapter(_ folder: URL) throws -> Data {
        try Data(contentsOf: folder.appendingPathComponent("adapter_model.safetensors"))
    }

    @Test func cancelledTaskStopsTheRun() async throws {
        try await withFolder { folder in
            let trainer = try await tiny().trainer(options(folder, steps: 10_000))
            let steps = Box(0)
            let task = Task { try await trainer.run { if $0.phase == .step { steps.change { $0 += 1 } } } }
            while steps.value < 2 { try await Task.sleep(for: .milliseconds(5)) }
            task.cancel()
            #expect(try await task.value.end == .interrupted)
        }
    }

    @Test func pausedRunLetsTheDeviceGo() async throws {
        try await withFolder { folder in
            let trainer = try await tiny().trainer(options(folder, steps: 30))
            let phases = Box([TrainPhase]())
            async let outcome = trainer.run { progress in
                phases.change { $0.append(progress.phase) }
                if progress.phase == .step && progress.step == 1 { trainer.pause() }
            }
            while phases.value.last != .paused { try await Task.sleep(for: .milliseconds(5)) }
            let count = phases.value.count
            #expect(try await !prompted().generate(greedy(4)).text().isEmpty)
            #expect(phases.value.count == count)
            trainer.resume()
            #expect(try await outcome.end == .finished)
        }
    }

    @Test func answersComeWhileItTrains() async throws {
        try await withFolder { folder in
            let trainer = try await tiny().trainer(options(folder, steps: 20))
            async let outcome = trainer.run()
            for _ in 0..<3 { #expect(try await !prompted().generate(greedy(8)).text().isEmpty) }
            #expect(try await outcome.end == .finished)
        }
    }

    @Test func oneRunOfATrainerAtATime() async throws {
        try await withFolder { folder in
            let trainer = try await tiny().trainer(options(folder, steps: 10_000))
            let started = Box(false)
            let task = Task { try await trainer.run { _ in started.change { $0 = true } } }
            while !started.value { try await Task.sleep(for: .milliseconds(5)) }
            #expect(await cause { try await trainer.run() } == "busy")
            trainer.stop()
            _ = try await task.value
        }
    }

    @Test func listenerThatThrowsStopsTheRun() async throws {
        struct Mine: Error {}
        try await withFolder { folder in
            let trainer = try await tiny().trainer(options(folder, steps: 1000))
            #expect(await cause { try await trainer.run { _ in throw Mine() } } == "callback")
        }
    }

    @Test func closedEngineEndsTheRun() async throws {
        try await withFolder { folder in
            let engine = try await Engine.open(tinyModel, options: EngineOptions(context: 128))
            let trainer = try engine.trainer(options(folder, steps: 10_000))
            let found = await cause { try await trainer.run { if $0.step == 2 { engine.close() } } }
            #expect(found == "closed")
            #expect(await cause { try await trainer.run() } == "closed")
        }
    }

    @Test(arguments: [#"{"text": "\ud800 alone"}"#, "no JSON", #"{"prompt": 1}"#, ""])
    func badRecordsAreRefusedByTheirLineAndNotQuoted(line: String) async throws {
        try await withFolder { folder in
            let file = folder.appendingPathComponent("data.jsonl")
            try Data((line + "\n").utf8).write(to: file)
            let run = folder.appendingPathComponent("run")
            let error = await thrown { try await tiny().trainer(options(run, data: .jsonl(file))).run() }
            let found = try #require(error)
            #expect(line.isEmpty || !found.message().contains(line))
        }
    }

    @Test(arguments: ["nowhere.jsonl", ""])
    func missingDataIsRefused(name: String) async throws {
        try await withFolder { folder in
            let file = folder.appendingPathComponent(name)
            let run = folder.appendingPathComponent("run")
            #expect(await thrown { try await tiny().trainer(options(run, data: .jsonl(file))).run() } != nil)
        }
    }

    @Test func wrongSettingsAreRefused() async throws {
        try await withFolder { folder in
            var wrong = options(folder)
            wrong.rank = -1
            #expect(await cause { try await tiny().trainer(wrong).run() } == "invalidArgument")
            #expect(await thrown { try await tiny().trainer(options(folder, data: .examples([]))).run() } != nil)
        }
    }
}

@Suite struct KilledTests {
    /// Runs the program that trains to its end, or until it has said so many lines.
    func train(_ folder: URL, killedAfter lines: Int? = nil) throws {
        let process = Process(), output = Pipe()
        process.executableURL = built("Killed")
        process.arguments = [tinyModel.path, folder.path, "60"]
        process.standardOutput = output
        try process.run()
        var said = 0
        while let byte = try output.fileHandleForReading.read(upToCount: 1), !byte.isEmpty {
            said += byte[0] == UInt8(ascii: "\n") ? 1 : 0
            if said == lines { kill(process.processIdentifier, SIGKILL) }
        }
        process.waitUntilExit()
        #expect(process.terminationReason == (lines == nil ? .exit : .uncaughtSignal))
    }

    @Test func killedRunGoesOnToTheSameBits() async throws {
        try await withFolder { folder in
            let whole = folder.appendingPathComponent("whole"), killed = folder.appendingPathComponent("killed")
            try train(whole)
            for _ in 0..<5 { try train(killed, killedAfter: Int.random(in: 1...8)) }
            try train(killed)
            #expect(try TrainerTests().adapter(killed) == TrainerTests().adapter(whole))
        }
    }
}

/// What the system hands to an app.
final class FakeTask: BackgroundTask, @unchecked Sendable {
    let held = Box<(expire: (() -> Void)?, success: Bool?)>((nil, nil))
    var expirationHandler: (() -> Void)? {
        get { held.value.expire }
        set { held.change { $0.expire = newValue } }
    }
    func setTaskCompleted(success: Bool) { held.change { $0.success = success } }
}

@Suite struct BackgroundTrainerTests {
    @Test func finishedRunIsASuccess() async throws {
        try await withFolder { folder in
            let task = FakeTask()
            let outcome = try await tiny().trainer(TrainerTests().options(folder, steps: 3, data: .examples(lessons))).run(in: task).value
            #expect(outcome.end == .finished)
            #expect(task.held.value.success == true)
        }
    }

    @Test func expiredTaskStopsAndTheNextOneGoesOn() async throws {
        try await withFolder { folder in
            let first = FakeTask()
            let trainer = try await tiny().trainer(TrainerTests().options(folder, steps: 6, data: .examples(lessons)))
            let stopped = try await trainer.run(in: first) { if $0.step == 2 { first.expirationHandler?() } }.value
            #expect(stopped.end == .interrupted && first.held.value.success == false)
            let second = FakeTask()
            let rest = try await tiny().trainer(TrainerTests().options(folder, steps: 6, data: .examples(lessons))).run(in: second).value
            #expect(rest.end == .finished && rest.resumedFrom == stopped.steps && second.held.value.success == true)
        }
    }

    @Test func failedRunIsNoSuccess() async throws {
        let task = FakeTask()
        let options = TrainerTests().options(URL(fileURLWithPath: "/nowhere"), data: .jsonl(URL(fileURLWithPath: "/nowhere")))
        #expect(await thrown { _ = try await tiny().trainer(options).run(in: task).value } != nil)
        #expect(task.held.value.success == false)
    }
}
