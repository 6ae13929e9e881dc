/* An exported network on a Cortex-M4 (QEMU's mps2-an386): reads images from the file "images" of
 * the host by semihosting, and prints what it takes and the logits.
 *
 * Under -icount shift=0 an instruction takes a nanosecond, and the system timer counts the ticks of
 * its clock; a loop of a known number of instructions tells how many that is.
 */
#include "model.h"

#include <stdint.h>

#define SYST_CSR (*(volatile uint32_t *)0xE000E010)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018)
#define CPACR (*(volatile uint32_t *)0xE000ED88)
#define TIMER_MASK 0xFFFFFFu

enum { SYS_OPEN = 1, SYS_WRITE0 = 4, SYS_READ = 6, SYS_EXIT = 0x18 };

#define LOOPS 100000u
#define STACK 16384u
#define PAINT 0xDEADBEEFu

extern uint32_t data_load, data_start, data_end, bss_start, bss_end, stack_top;

void reset(void);

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {&stack_top,
                                                                             (void *)reset};

static float input[ATMC_MODEL_INPUTS], output[ATMC_MODEL_OUTPUTS];

static uint32_t host(uint32_t operation, const void *arguments)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void print(const char *name, uint32_t value, const char *end)
{
    char digits[9];
    int i;
    for (i = 0; i < 8; i++)
        digits[i] = "0123456789abcdef"[value >> (28 - 4 * i) & 15];
    digits[8] = 0;
    host(SYS_WRITE0, name);
    host(SYS_WRITE0, digits);
    host(SYS_WRITE0, end);
}

static uint32_t since(uint32_t start)
{
    return (start - SYST_CVR) & TIMER_MASK;
}

/* Below the frame of the caller, which is the only one. */
static uint32_t *stack_bottom(void)
{
    return &stack_top - STACK / 4;
}

static void paint_stack(void)
{
    uint32_t *word, *end;
    __asm__ volatile("mov %0, sp" : "=r"(end));
    for (word = stack_bottom(); word < end - 16; word++)
        *word = PAINT;
}

static uint32_t painted_over(void)
{
    uint32_t *word = stack_bottom();
    while (*word == PAINT)
        word++;
    return 4 * (uint32_t)(&stack_top - word);
}

int main(void)
{
    static const char name[] = "images";
    const uint32_t file[3] = {(uint32_t)name, 1, sizeof name - 1};
    uint32_t handle, start, count = LOOPS;
    SYST_RVR = TIMER_MASK;
    SYST_CVR = 0;
    SYST_CSR = 5;

    start = SYST_CVR;
    __asm__ volatile("1: nop\n nop\n nop\n nop\n nop\n nop\n nop\n nop\n subs %0, #1\n bne 1b"
                     : "+r"(count)
                     :
                     : "cc");
    print("ticks of a million instructions ", since(start), "\n");

    paint_stack();
    start = SYST_CVR;
    if (atmc_model_init() != ATMC_END)
        return 1;
    print("ticks of the start ", since(start), "\n");
    print("stack of the start ", painted_over(), "\n");

    paint_stack();
    handle = host(SYS_OPEN, file);
    for (;;) {
        const uint32_t image[3] = {handle, (uint32_t)input, sizeof input};
        uint32_t i, bits;
        if (host(SYS_READ, image) != 0)
            return 0;
        start = SYST_CVR;
        atmc_model_run(input, output);
        print("ticks of an image ", since(start), "\n");
        print("stack of an image ", painted_over(), "\n");
        for (i = 0; i < ATMC_MODEL_OUTPUTS; i++) {
            __builtin_memcpy(&bits, &output[i], sizeof bits);
            print(i == 0 ? "logits " : " ", bits, i + 1 == ATMC_MODEL_OUTPUTS ? "\n" : "");
        }
    }
}

void reset(void)
{
    const uint32_t *from = &data_load;
    uint32_t *to;
    CPACR |= 0xFu << 20; /* the floating-point unit */
    __asm__ volatile("dsb\n isb");
    for (to = &data_start; to < &data_end;)
        *to++ = *from++;
    for (to = &bss_start; to < &bss_end;)
        *to++ = 0;
    host(SYS_EXIT, (void *)(main() == 0 ? 0x20026 : 0x20023));
    for (;;)
        continue;
}
