/* The peak of multiply-accumulates of an x86 CPU with AVX2 and no VNNI: what no engine can pass.
 *
 *     gcc -O2 -pthread -mavx2 -mfma benchmarks/scripts/cpu_peak.c -o cpu_peak && ./cpu_peak THREADS
 *
 * fp32: vfmadd231ps, 8 a vector. int8: vpmaddubsw, vpmaddwd, vpaddd, 32 for the three, the sequence that
 * kernels without VNNI run. Registers only: no memory, no packing, so an upper bound.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ROUNDS 40000000L

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *fp32(void *unused)
{
	for (long i = 0; i < ROUNDS; i++)
		__asm__ volatile(
			"vfmadd231ps %%ymm14, %%ymm15, %%ymm0\n vfmadd231ps %%ymm14, %%ymm15, %%ymm1\n"
			"vfmadd231ps %%ymm14, %%ymm15, %%ymm2\n vfmadd231ps %%ymm14, %%ymm15, %%ymm3\n"
			"vfmadd231ps %%ymm14, %%ymm15, %%ymm4\n vfmadd231ps %%ymm14, %%ymm15, %%ymm5\n"
			"vfmadd231ps %%ymm14, %%ymm15, %%ymm6\n vfmadd231ps %%ymm14, %%ymm15, %%ymm7\n"
			"vfmadd231ps %%ymm14, %%ymm15, %%ymm8\n vfmadd231ps %%ymm14, %%ymm15, %%ymm9\n"
			::: "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9");
	return unused;
}

#define INT8(a, t) "vpmaddubsw %%ymm14, %%ymm15, %%ymm" t "\n vpmaddwd %%ymm" t ", %%ymm13, %%ymm" t \
	"\n vpaddd %%ymm" t ", %%ymm" a ", %%ymm" a "\n"

static void *int8(void *unused)
{
	for (long i = 0; i < ROUNDS; i++)
		__asm__ volatile(
			INT8("0", "6") INT8("1", "7") INT8("2", "8") INT8("3", "9") INT8("4", "10")
			INT8("5", "11") INT8("0", "6") INT8("1", "7") INT8("2", "8") INT8("3", "9")
			::: "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9",
			    "ymm10", "ymm11");
	return unused;
}

static double peak(void *(*kernel)(void *), int threads, double per_round)
{
	pthread_t thread[64];
	double start = now();
	for (int i = 0; i < threads; i++)
		pthread_create(&thread[i], NULL, kernel, NULL);
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	return threads * per_round * (double)ROUNDS / (now() - start) / 1e9;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	if (threads < 1 || threads > 64)
		return 2;
	for (int i = 0; i < 3; i++)
		printf("{\"threads\": %d, \"fp32_gmac_s\": %.1f, \"int8_gmac_s\": %.1f}\n", threads,
		       peak(fp32, threads, 80), peak(int8, threads, 320));
	return 0;
}
