// Records and enums cross the border as they are; only what holds something on the device is wrapped.
import EpiphyteCore
import Foundation

public typealias AcceptOptions = EpiphyteCore.AcceptOptions
public typealias AdapterFormat = EpiphyteCore.AdapterFormat
public typealias AdapterProbe = EpiphyteCore.AdapterProbe
public typealias AdapterSource = EpiphyteCore.AdapterSource
public typealias AdapterState = EpiphyteCore.AdapterState
public typealias AdapterVersion = EpiphyteCore.AdapterVersion
public typealias AdapterWeight = EpiphyteCore.AdapterWeight
public typealias AnswerStats = EpiphyteCore.AnswerStats
public typealias BatchToken = EpiphyteCore.BatchToken
public typealias Canary = EpiphyteCore.Canary
typealias CancelToken = EpiphyteCore.CancelToken
public typealias ClassBytes = EpiphyteCore.ClassBytes
public typealias DataReport = EpiphyteCore.DataReport
public typealias DeltaLosses = EpiphyteCore.DeltaLosses
public typealias DeltaOptions = EpiphyteCore.DeltaOptions
public typealias DeviceWork = EpiphyteCore.DeviceWork
public typealias EngineOptions = EpiphyteCore.EngineOptions
public typealias EnginePhase = EpiphyteCore.EnginePhase
public typealias EngineState = EpiphyteCore.EngineState
public typealias EpiphyteError = EpiphyteCore.EpiphyteError
public typealias Example = EpiphyteCore.Example
public typealias Factor = EpiphyteCore.Factor
public typealias FinishReason = EpiphyteCore.FinishReason
public typealias FlowerAnswer = EpiphyteCore.FlowerAnswer
public typealias FlowerEnd = EpiphyteCore.FlowerEnd
public typealias FlowerLeave = EpiphyteCore.FlowerLeave
public typealias FlowerMetric = EpiphyteCore.FlowerMetric
public typealias FlowerOptions = EpiphyteCore.FlowerOptions
public typealias FlowerReply = EpiphyteCore.FlowerReply
public typealias FlowerRequest = EpiphyteCore.FlowerRequest
public typealias FlowerStatus = EpiphyteCore.FlowerStatus
public typealias FlowerStep = EpiphyteCore.FlowerStep
public typealias FlowerTask = EpiphyteCore.FlowerTask
public typealias FlowerValue = EpiphyteCore.FlowerValue
public typealias GenerateOptions = EpiphyteCore.GenerateOptions
public typealias KeyKind = EpiphyteCore.KeyKind
public typealias KvPolicy = EpiphyteCore.KvPolicy
public typealias LoadPhase = EpiphyteCore.LoadPhase
public typealias LoadProgress = EpiphyteCore.LoadProgress
public typealias LoadReport = EpiphyteCore.LoadReport
public typealias LogitBias = EpiphyteCore.LogitBias
public typealias Losses = EpiphyteCore.Losses
public typealias LrDecay = EpiphyteCore.LrDecay
public typealias LrWarmup = EpiphyteCore.LrWarmup
public typealias MemoryClass = EpiphyteCore.MemoryClass
public typealias MemoryLevel = EpiphyteCore.MemoryLevel
public typealias MemoryPlan = EpiphyteCore.MemoryPlan
public typealias MemoryPlanOptions = EpiphyteCore.MemoryPlanOptions
public typealias MemoryReport = EpiphyteCore.MemoryReport
public typealias Message = EpiphyteCore.Message
public typealias ModelSource = EpiphyteCore.ModelSource
public typealias Optimizer = EpiphyteCore.Optimizer
public typealias PromptOptions = EpiphyteCore.PromptOptions
public typealias PublicKey = EpiphyteCore.PublicKey
public typealias ReportItem = EpiphyteCore.ReportItem
public typealias ReportModule = EpiphyteCore.ReportModule
public typealias ResponseFormat = EpiphyteCore.ResponseFormat
public typealias Sampling = EpiphyteCore.Sampling
public typealias ThermalState = EpiphyteCore.ThermalState
public typealias Token = EpiphyteCore.Token
public typealias TrainData = EpiphyteCore.TrainData
public typealias TrainDuration = EpiphyteCore.TrainDuration
public typealias TrainEnd = EpiphyteCore.TrainEnd
public typealias TrainOptions = EpiphyteCore.TrainOptions
public typealias TrainOutcome = EpiphyteCore.TrainOutcome
public typealias TrainPhase = EpiphyteCore.TrainPhase
public typealias TrainProgress = EpiphyteCore.TrainProgress
public typealias TrainWarning = EpiphyteCore.TrainWarning
public typealias TrainingPace = EpiphyteCore.TrainingPace
public typealias TrainingPlan = EpiphyteCore.TrainingPlan
public typealias ValidationSplit = EpiphyteCore.ValidationSplit
public typealias Verdict = EpiphyteCore.Verdict

extension Message {
    public static func system(_ content: String) -> Message { Message(role: "system", content: content) }
    public static func user(_ content: String) -> Message { Message(role: "user", content: content) }
    public static func assistant(_ content: String) -> Message { Message(role: "assistant", content: content) }
}

extension AdapterWeight: ExpressibleByStringLiteral {
    /// An adapter by its id, at weight 1.
    public init(stringLiteral id: String) { self.init(id: id) }
}

// What has one part needs no name for it.
extension TrainData {
    public static func examples(_ examples: [Example]) -> TrainData { .examples(examples: examples) }
    /// A file of JSON records, one a line.
    public static func jsonl(_ file: URL) -> TrainData { .jsonl(path: file.path) }
    /// One document, plain UTF-8.
    public static func text(_ file: URL) -> TrainData { .text(path: file.path) }
}

extension TrainDuration {
    public static func steps(_ steps: Int64) -> TrainDuration { .steps(steps: steps) }
    public static func epochs(_ epochs: Int64) -> TrainDuration { .epochs(epochs: epochs) }
}

extension Example {
    public static func chat(_ messages: [Message]) -> Example { .chat(messages: messages) }
    public static func text(_ text: String) -> Example { .text(text: text) }
}
