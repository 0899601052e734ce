// Random and damaged event batches for the sanitizers: see event_random.cc.
#pragma once

#include <random>

void event_random(long cases, std::mt19937& random);
