import Foundation
import Testing

@testable import Epiphyte

@Suite struct LifecycleTests {
    func engine() async throws -> Engine { try await Engine.open(tinyModel, options: EngineOptions(context: 256)) }

    func prompted(_ engine: Engine) async throws -> Session {
        let session = try engine.session()
        try await session.pushText(prompt)
        return session
    }

    @Test func gpuWorkInTheBackgroundIsAnError() async throws {
        let engine = try await engine()
        let session = try await prompted(engine)
        let answer = try await session.fork().generate(greedy(4)).text()
        engine.background()
        #expect(try engine.state.phase == .background)
        #expect(await cause { _ = try await session.generate(greedy(4)).text() } == "background")
        #expect(session.tokenCount > 0)
        engine.foreground()
        #expect(try await session.generate(greedy(4)).text() == answer)
    }

    @Test func answerGoesOnInTheForeground() async throws {
        let engine = try await engine()
        let session = try await prompted(engine)
        let whole = try await session.fork().generate(greedy(12)).text()
        let generation = try session.generate(greedy(12))
        var text = try await generation.next()!.text
        engine.background()
        // Those under way come; then it is refused, and is not over.
        #expect(await cause { while let token = try await generation.next() { text += token.text } } == "background")
        #expect(generation.finishReason == nil)
        engine.foreground()
        text += try await generation.text()
        #expect(text == whole)
        #expect(generation.finishReason == .maxTokens)
    }

    @Test func trainingWaitsInTheBackground() async throws {
        try await withFolder { folder in
            let engine = try await engine()
            let trainer = try engine.trainer(TrainerTests().options(folder, steps: 6))
            async let outcome = trainer.run { if $0.phase == .step && $0.step == 2 { Task { engine.background() } } }
            while try engine.state.phase != .background { try await Task.sleep(for: .milliseconds(5)) }
            #expect(try engine.state.training == .paused)
            engine.foreground()
            #expect(try await outcome.end == .finished)
        }
    }

    @Test(arguments: [MemoryLevel.moderate, .low, .critical, .complete])
    func memoryIsGivenBackAndTheNextCallWorks(level: MemoryLevel) async throws {
        let engine = try await engine()
        try await engine.loadAdapter("plain", from: peft("plain"))
        let session = try await prompted(engine)
        try await session.setAdapters(["plain"])
        let expected = try await session.fork().generate(greedy(16)).text()
        let generation = try session.generate(greedy(16))
        var text = try await generation.next()!.text
        let report = try await engine.memoryPressure(level)
        #expect(report.level == level)
        #expect(report.modelLeft == (level != .complete))
        while let token = try await generation.next() { text += token.text }
        #expect(text == expected)
        #expect(try await session.tokens().count == session.tokenCount)
    }

    @Test(arguments: [MemoryLevel.moderate, .low, .critical, .complete])
    func trainingOutlivesMemoryPressure(level: MemoryLevel) async throws {
        try await withFolder { folder in
            let whole = folder.appendingPathComponent("whole"), pressed = folder.appendingPathComponent("pressed")
            let tests = TrainerTests()
            try await tiny().trainer(tests.options(whole, steps: 6)).run()
            let engine = try await engine()
            let asked = Box([Task<MemoryReport, Error>]())
            try await engine.trainer(tests.options(pressed, steps: 6)).run { progress in
                guard progress.phase == .step && progress.step == 3 else { return }
                asked.change { $0.append(Task { try await engine.memoryPressure(level) }) }
            }
            for task in asked.value { _ = try await task.value }
            #expect(try tests.adapter(pressed) == tests.adapter(whole))
        }
    }

    @Test func heatPausesTrainingAndNothingElse() async throws {
        let engine = try await engine()
        for (state, pace) in [(ThermalState.fair, TrainingPace.slowed), (.serious, .paused), (.critical, .paused), (.nominal, .full)] {
            engine.thermal(state)
            #expect(try engine.state.training == pace)
            #expect(try await !prompted(engine).generate(greedy(2)).text().isEmpty)
        }
    }

    @Test func notificationsReachTheEngine() async throws {
        let engine = try await engine()
        let center = NotificationCenter()
        let events: [Notification.Name: DeviceSignals.Event] = [
            .init("memory"): .memoryWarning, .init("heat"): .thermal, .init("away"): .background, .init("back"): .foreground,
        ]
        func post(_ name: String) { center.post(name: .init(name), object: nil) }
        let heat = Box(ThermalState.serious)
        var signals: DeviceSignals? = engine.follow(center: center, events: events, heat: { heat.value })
        #expect(try engine.state.thermal == .serious)
        heat.change { $0 = .fair }
        post("heat")
        #expect(try engine.state.thermal == .fair)
        post("away")
        #expect(try engine.state.phase == .background)
        post("back")
        #expect(try engine.state.phase == .ready)
        post("memory")
        while try engine.state.memoryWarnings == 0 { try await Task.sleep(for: .milliseconds(5)) }
        #expect(try engine.state.phase == .ready, "in the foreground the model stays")
        post("away")
        post("memory")
        while try engine.state.memoryWarnings == 1 { try await Task.sleep(for: .milliseconds(5)) }
        post("back")
        #expect(try engine.state.phase == .unloaded)
        #expect(signals != nil)
        signals = nil
        post("away")
        #expect(try engine.state.phase == .unloaded)
    }

    @Test func statesAreASequence() async throws {
        let engine = try await engine()
        let seen = Box([EnginePhase]())
        let states = engine.states
        let watching = Task { for await state in states { seen.change { $0.append(state.phase) } } }
        while seen.value.isEmpty { try await Task.sleep(for: .milliseconds(5)) }
        engine.background()
        while seen.value.last != .background { try await Task.sleep(for: .milliseconds(5)) }
        engine.foreground()
        while seen.value.last != .ready { try await Task.sleep(for: .milliseconds(5)) }
        engine.close()
        await watching.value
    }

    @Test func whoWatchesCanBeCancelledAndKeepsNoEngine() async throws {
        var engine: Engine? = try await engine()
        weak var gone = engine
        let (cancelled, left) = (engine!.states, engine!.states)
        let watching = Task { for await _ in cancelled {} }
        let waiting = Task { for await _ in left {} }
        watching.cancel()
        await watching.value
        engine = nil
        await waiting.value
        #expect(gone == nil)
    }

    @Test func closedEngineMindsNothing() async throws {
        let engine = try await engine()
        engine.close()
        engine.thermal(.critical)
        engine.background()
        engine.foreground()
        #expect(await cause { try await engine.memoryPressure(.low) } == "closed")
        #expect(await cause { _ = try engine.state } == "closed")
        #expect(await cause { _ = try engine.classBytes } == "closed")
    }
}
