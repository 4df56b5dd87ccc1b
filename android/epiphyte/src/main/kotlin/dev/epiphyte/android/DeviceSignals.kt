package dev.epiphyte.android

import android.app.Activity
import android.app.Application
import android.content.BroadcastReceiver
import android.content.ComponentCallbacks2
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.content.res.Configuration
import android.os.Build
import android.os.Bundle
import android.os.PowerManager
import dev.epiphyte.Engine
import dev.epiphyte.MemoryLevel
import dev.epiphyte.ThermalState
import dev.epiphyte.Trainer
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.launch

/**
 * Tells the engine of the phone for as long as it is not closed: memory that Android wants back,
 * heat, foreground and background. Call it once, where the engine is opened.
 */
public fun Engine.follow(application: Application, scope: CoroutineScope): AutoCloseable {
    val memory = MemoryCallbacks(this, scope)
    val screen = ScreenCallbacks(this)
    application.registerComponentCallbacks(memory)
    application.registerActivityLifecycleCallbacks(screen)
    val heat = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) followHeat(application, this) else null
    return AutoCloseable {
        application.unregisterComponentCallbacks(memory)
        application.unregisterActivityLifecycleCallbacks(screen)
        heat?.close()
    }
}

private fun followHeat(context: Context, engine: Engine): AutoCloseable {
    val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager
    val listener = ThermalListener(engine)
    power.addThermalStatusListener(listener)
    return AutoCloseable { power.removeThermalStatusListener(listener) }
}

/** Gives memory back when Android asks for it; all comes back when it is next needed. */
public class MemoryCallbacks(
    private val engine: Engine,
    private val scope: CoroutineScope,
) : ComponentCallbacks2 {
    override fun onTrimMemory(level: Int) {
        scope.launch { engine.memoryPressure(memoryLevel(level)) }
    }

    @Deprecated("Android's, which calls onTrimMemory as well")
    override fun onLowMemory(): Unit = Unit

    override fun onConfigurationChanged(newConfig: Configuration): Unit = Unit
}

/** Heat slows training down, then pauses it, and then makes gaps between tokens. */
public class ThermalListener(private val engine: Engine) : PowerManager.OnThermalStatusChangedListener {
    override fun onThermalStatusChanged(status: Int): Unit = engine.thermal(thermalState(status))
}

/** The app is in the background when none of its activities is started. */
public class ScreenCallbacks(private val engine: Engine) : Application.ActivityLifecycleCallbacks {
    private var started = 0

    override fun onActivityStarted(activity: Activity) {
        if (started++ == 0) engine.foreground()
    }

    override fun onActivityStopped(activity: Activity) {
        if (--started == 0) engine.background()
    }

    override fun onActivityCreated(activity: Activity, savedInstanceState: Bundle?): Unit = Unit
    override fun onActivityResumed(activity: Activity): Unit = Unit
    override fun onActivityPaused(activity: Activity): Unit = Unit
    override fun onActivitySaveInstanceState(activity: Activity, outState: Bundle): Unit = Unit
    override fun onActivityDestroyed(activity: Activity): Unit = Unit
}

/** Training waits while the battery is low. Register it with [filter]. */
public class BatteryReceiver(private val trainer: Trainer) : BroadcastReceiver() {
    override fun onReceive(context: Context?, intent: Intent?): Unit = hear(intent?.action)

    internal fun hear(action: String?) {
        when (action) {
            Intent.ACTION_BATTERY_LOW -> trainer.pause()
            Intent.ACTION_BATTERY_OKAY, Intent.ACTION_POWER_CONNECTED -> trainer.resume()
        }
    }

    public companion object {
        /** What it wants to hear. */
        public fun filter(): IntentFilter = IntentFilter().apply {
            addAction(Intent.ACTION_BATTERY_LOW)
            addAction(Intent.ACTION_BATTERY_OKAY)
            addAction(Intent.ACTION_POWER_CONNECTED)
        }
    }
}
