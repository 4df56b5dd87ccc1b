package dev.epiphyte

import java.io.BufferedReader
import java.io.File
import java.util.concurrent.TimeUnit
import kotlin.random.Random
import kotlin.system.exitProcess
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.runBlocking

private const val STEPS = 150L

/** A process of its own that trains in the folder it is given, and says each step. */
internal object KilledRun {
    @JvmStatic
    fun main(arguments: Array<String>): Unit = runBlocking {
        Engine.open(tinyModel, EngineOptions(context = 256)).use { engine ->
            val outcome = engine.trainer(everyStep(File(arguments[0]))).run { println("${it.phase} ${it.step}") }
            println(outcome.end)
        }
        // JNA's and the dispatchers' threads are no reason to stay.
        exitProcess(0)
    }

    fun everyStep(folder: File) = lesson(folder, STEPS).copy(checkpointEvery = 1)
}

class KilledTest {
    private val kills = System.getenv("EPIPHYTE_KILLS")?.toInt() ?: 20
    private val seed = System.getenv("EPIPHYTE_KILL_SEED")?.toInt() ?: 1

    private fun start(folder: File): Process {
        val java = File(System.getProperty("java.home"), "bin/java").path
        val properties = listOf("jna.library.path", "epiphyte.repository", "epiphyte.model").map { "-D$it=${System.getProperty(it)}" }
        // A process of a few seconds is started faster than it is compiled.
        val quick = listOf("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
        val command = listOf(java) + quick + properties + listOf("-cp", System.getProperty("java.class.path"), KilledRun::class.java.name, folder.path)
        return ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start()
    }

    /** Reads until [lines] lines are there, or the end; true when the run is over. */
    private fun BufferedReader.follow(lines: Int): Boolean {
        repeat(lines) { if ((readLine() ?: return false) == TrainEnd.FINISHED.name) return true }
        return false
    }

    @Test
    fun `a JVM killed at random moments resumes to the same bits, and no file is torn`() = running {
        withFolder { folder ->
            val whole = File(folder, "whole")
            val killed = File(folder, "killed")
            tiny().trainer(KilledRun.everyStep(whole)).run()
            val random = Random(seed)
            repeat(kills) { kill ->
                val process = start(killed)
                val over = process.inputStream.bufferedReader().follow(lines = random.nextInt(0, 24))
                Thread.sleep(random.nextLong(0, 40))
                process.destroyForcibly().waitFor(10, TimeUnit.SECONDS)
                assertTrue(!over, "finished before kill ${kill + 1} of $kills")
                // What a reader would find is whole or not there.
                if (File(killed, "adapter_model.safetensors").exists()) {
                    tiny().loadAdapter("killed", killed)
                    tiny().unloadAdapter("killed")
                }
            }
            val rest = tiny().trainer(KilledRun.everyStep(killed)).run()
            println("$kills kills (seed $seed); the last run went on from step ${rest.resumedFrom} of $STEPS")
            assertEquals(TrainEnd.FINISHED, rest.end)
            assertEquals(learnt(whole), learnt(killed))
            assertEquals(whole.list()!!.sorted(), killed.list()!!.sorted())
        }
    }
}
