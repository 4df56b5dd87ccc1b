import Epiphyte
import Foundation
import Observation

/// What the screen shows, and what its buttons do. Each feature is an adapter; one that was taught is one of them.
@MainActor @Observable
final class Assistant {
    private(set) var features: [String] = []
    private(set) var answer = ""
    private(set) var tokensPerSecond: Double?
    private(set) var losses: [Double] = []
    private(set) var problem: String?
    private(set) var isReady = false
    var feature: String?

    private let model: URL
    private let bundled: [String: URL]
    private let folder: URL
    private var engine: Engine?
    private var signals: DeviceSignals?
    private var running: Task<Void, Never>?

    /// `bundled` are the adapters that come with the app, by name; those learnt here are kept in `folder`.
    init(model: URL, bundled: [String: URL], folder: URL) {
        self.model = model
        self.bundled = bundled
        self.folder = folder
    }

    /// Loads the model, and every adapter that there is.
    func open() async {
        await reporting {
            let engine = try await Engine.open(model, options: EngineOptions(context: 1024))
            let learnt = (try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
            let adapters = bundled.merging(learnt.map { ($0.lastPathComponent, $0) }) { bundled, _ in bundled }
            for (name, file) in adapters {
                // A folder whose run has not come to its first step holds none yet.
                if (try? await engine.loadAdapter(name, from: file)) != nil { features.append(name) }
            }
            features.sort()
            self.engine = engine
            signals = engine.follow()
            isReady = true
        }
    }

    /// Streams an answer to `prompt` with the chosen feature; a second one ends the first.
    func ask(_ prompt: String) async {
        stop()
        let task = Task { await reporting { try await stream(prompt) } }
        running = task
        await task.value
    }

    private func stream(_ prompt: String) async throws {
        guard let engine else { return }
        answer = ""
        let session = try engine.session()
        try await session.setAdapters(feature.map { [AdapterWeight(id: $0)] } ?? [])
        try await session.setMessages([.user(prompt)])
        let generation = try session.generate(GenerateOptions(maxTokens: 200))
        for try await token in generation {
            answer += token.text
            tokensPerSecond = generation.stats.decodeTokensPerSecond
        }
    }

    func stop() { running?.cancel() }

    /// Learns from questions and their answers, and adds what was learnt as a feature.
    func teach(_ name: String, _ lessons: [(question: String, answer: String)]) async {
        losses = []
        let task = Task { await reporting { try await train(name, lessons) } }
        running = task
        await task.value
    }

    private func train(_ name: String, _ lessons: [(question: String, answer: String)]) async throws {
        guard let engine else { return }
        let examples = lessons.map { Example.chat([.user($0.question), .assistant($0.answer)]) }
        let run = folder.appendingPathComponent(name)
        let trainer = try engine.trainer(TrainOptions(folder: run.path, data: .examples(examples)))
        let outcome = try await trainer.run { progress in
            guard progress.phase == .step, let loss = progress.loss else { return }
            Task { @MainActor in self.losses.append(loss) }
        }
        guard outcome.end != .interrupted else { return }
        try await engine.loadAdapter(name, from: run)
        features = Array(Set(features + [name])).sorted()
        feature = name
    }

    private func reporting(_ work: () async throws -> Void) async {
        problem = nil
        do { try await work() } catch { problem = error.localizedDescription }
    }
}
